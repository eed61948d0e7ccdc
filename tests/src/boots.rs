// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of checks that boot the hypervisor: without guests, and with micro-guests.

use crate::{BOOT_FAILED, Backend, Check};

/// All of them.
pub const CHECKS: &[Check] = &[
    Check::boot("boot/nothing-to-start", BOOT_FAILED, &["Isthmus", "cannot start:"]),
    Check {
        by_grub: true,
        backends: &[Backend::Svm],
        ..Check::boot("boot/by-grub-in-qemu", BOOT_FAILED, &["Isthmus", "cannot start:"])
    },
    Check {
        hv_append: "no_such_word=1",
        ..Check::boot("boot/unknown-words-are-named", BOOT_FAILED, &["no_such_word=1"])
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tier;

    #[test]
    fn names_are_unique_and_say_where_they_belong() {
        for (i, check) in CHECKS.iter().enumerate() {
            assert!(check.name.contains('/'), "{}", check.name);
            assert!(CHECKS[..i].iter().all(|other| other.name != check.name), "{} twice", check.name);
        }
    }

    #[test]
    fn every_check_runs_somewhere_and_quick_ones_are_short() {
        for check in CHECKS {
            assert!(!check.backends.is_empty(), "{}", check.name);
            assert!(check.tier != Tier::Quick || check.limit_seconds <= 120, "{}", check.name);
            assert!(!check.guests.is_empty() || !check.says.is_empty(), "{} expects nothing", check.name);
        }
    }
}
