use super::scenes::Scene;
pub(super) const ALL: &[Scene] = &[];
