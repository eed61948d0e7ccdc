//! The control domain's library.
