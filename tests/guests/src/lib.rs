//! What micro-guests share.
#![no_std]
