// SPDX-License-Identifier: MIT OR Apache-2.0
//! Boot modules: what each is for, and how one file can hold several.
//!
//! A boot loader hands over modules as bytes with a string each. The string's first word is the
//! module's role:
//!
//! ```text
//! kernel CMDLINE...                                dom0's kernel
//! initrd                                           dom0's initial RAM disk
//! guest name=NAME mem=MiB vcpus=N control -- CMDLINE...
//!                                                  a PVH image that is started as it is; `control`
//!                                                  lets it control other domains
//! guest-initrd                                     belongs to the guest before it
//! ```
//!
//! QEMU's `-kernel` loads exactly one module. There it is a *bundle*: an uncompressed newc cpio
//! archive with the members `0.args`, `0.data`, `1.args`, and so on. cpio was chosen because
//! every system can make and list one, and its offsets are plain to check. Modules stay where
//! they are; the splitter returns ranges of the bundle.

use alloc::vec::Vec;
use core::{fmt, ops::Range, str};

use super::cmdline::{Fault, number, size};

/// The most memory that one guest may ask for, in bytes.
const MAX_GUEST_MEM: u64 = 1 << 40;
/// The most vCPUs that one guest may ask for.
pub const MAX_GUEST_VCPUS: u32 = 128;

/// What a module is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role<'a> {
    /// dom0's kernel.
    Kernel {
        /// Its command line.
        cmdline: &'a str,
    },
    /// dom0's initial RAM disk.
    Initrd,
    /// A PVH image to start without dom0.
    Guest(GuestSpec<'a>),
    /// The initial RAM disk of the guest before it.
    GuestInitrd,
}

/// What a guest module asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSpec<'a> {
    /// The domain's name; `guest` when none is given.
    pub name: &'a str,
    /// Its memory in bytes, a number of MiB.
    pub mem: u64,
    /// Its vCPUs, at least 1.
    pub vcpus: u32,
    /// Whether it may control other domains. There is dom0 for that; tests have guests for it.
    pub control: bool,
    /// Its command line, everything behind ` -- `.
    pub cmdline: &'a str,
}

/// All modules by role. Numbers are places in the list that was sorted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Roster<'a> {
    /// dom0, if there is a kernel for it.
    pub dom0: Option<Dom0Modules<'a>>,
    /// Guests to start directly, in order.
    pub guests: Vec<GuestModules<'a>>,
}

/// The modules that dom0 is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dom0Modules<'a> {
    /// The module that holds the kernel.
    pub kernel: usize,
    /// The module that holds the initial RAM disk.
    pub initrd: Option<usize>,
    /// The kernel's command line.
    pub cmdline: &'a str,
}

/// The modules that a guest is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestModules<'a> {
    /// The module that holds the image.
    pub image: usize,
    /// The module that holds the initial RAM disk.
    pub initrd: Option<usize>,
    /// What it asks for.
    pub spec: GuestSpec<'a>,
}

/// What is wrong with the modules' strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleError<'a> {
    /// There is nothing to start.
    NothingToStart,
    /// The first word is no role.
    UnknownRole {
        /// The module's number, from 0.
        module: usize,
        /// Its first word.
        word: &'a str,
    },
    /// A word of a guest module is not understood.
    BadWord {
        /// The module's number, from 0.
        module: usize,
        /// The word.
        word: &'a str,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A second module with a role that can be had once.
    Twice {
        /// The module's number, from 0.
        module: usize,
        /// The role's word.
        role: &'static str,
    },
    /// An initial RAM disk without the kernel it is for.
    Orphan {
        /// The module's number, from 0.
        module: usize,
        /// The role's word.
        role: &'static str,
        /// The role that has to come with it.
        owner: &'static str,
    },
}

impl fmt::Display for ModuleError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingToStart => write!(
                f,
                "boot modules: none of them is a kernel; give dom0's kernel with the string 'kernel ...', \
                 or a guest with 'guest ...'"
            ),
            Self::UnknownRole { module, word } => write!(
                f,
                "boot module {module}: its string begins with '{word}', which is no role; \
                 give one of kernel, initrd, guest, guest-initrd"
            ),
            Self::BadWord { module, word, fault } => {
                write!(f, "boot module {module}: '{word}' is not understood: ")?;
                match fault {
                    Fault::NotASize => write!(f, "memory is a number of MiB, or ends in M or G"),
                    Fault::NotInRange(low, high) => write!(f, "the value must be a number from {low} to {high}"),
                    Fault::Unknown | Fault::NotOneOf(_) => {
                        write!(f, "a guest takes name=, mem=, vcpus=, control, then -- and its command line")
                    }
                }
            }
            Self::Twice { module, role } => {
                write!(f, "boot module {module}: a second '{role}'; there can be one, remove one of them")
            }
            Self::Orphan { module, role, owner } => {
                write!(f, "boot module {module}: '{role}' without a '{owner}' module; give that one first")
            }
        }
    }
}

/// Sorts modules, given by their strings, into the domains to start.
///
/// # Errors
/// Names the first module that cannot be placed, or says that there is nothing to start.
pub fn sort<'a>(strings: &[&'a str]) -> Result<Roster<'a>, ModuleError<'a>> {
    let mut roster = Roster::default();
    let mut initrd = None;
    for (module, args) in strings.iter().enumerate() {
        match role(module, args)? {
            Role::Kernel { cmdline } => {
                if roster.dom0.is_some() {
                    return Err(ModuleError::Twice { module, role: "kernel" });
                }
                roster.dom0 = Some(Dom0Modules { kernel: module, initrd: None, cmdline });
            }
            Role::Initrd => {
                if initrd.replace(module).is_some() {
                    return Err(ModuleError::Twice { module, role: "initrd" });
                }
            }
            Role::Guest(spec) => roster.guests.push(GuestModules { image: module, initrd: None, spec }),
            Role::GuestInitrd => {
                let orphan = ModuleError::Orphan { module, role: "guest-initrd", owner: "guest" };
                let guest = roster.guests.last_mut().ok_or(orphan)?;
                if guest.initrd.replace(module).is_some() {
                    return Err(ModuleError::Twice { module, role: "guest-initrd" });
                }
            }
        }
    }
    match (&mut roster.dom0, initrd) {
        (Some(dom0), initrd) => dom0.initrd = initrd,
        (None, Some(module)) => return Err(ModuleError::Orphan { module, role: "initrd", owner: "kernel" }),
        (None, None) if roster.guests.is_empty() => return Err(ModuleError::NothingToStart),
        (None, None) => {}
    }
    Ok(roster)
}

/// Reads one module's string. `module` is only for the error.
fn role(module: usize, args: &str) -> Result<Role<'_>, ModuleError<'_>> {
    let args = args.trim_ascii();
    let (word, rest) = args.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((args, ""));
    match word {
        "kernel" => Ok(Role::Kernel { cmdline: rest.trim_ascii() }),
        "initrd" => Ok(Role::Initrd),
        "guest" => guest(module, rest).map(Role::Guest),
        "guest-initrd" => Ok(Role::GuestInitrd),
        _ => Err(ModuleError::UnknownRole { module, word }),
    }
}

fn guest(module: usize, text: &str) -> Result<GuestSpec<'_>, ModuleError<'_>> {
    let mut spec = GuestSpec { name: "guest", mem: 64 << 20, vcpus: 1, control: false, cmdline: "" };
    let mut rest = text.trim_ascii_start();
    while !rest.is_empty() {
        let (word, behind) = rest.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((rest, ""));
        rest = behind.trim_ascii_start();
        if word == "--" {
            spec.cmdline = rest.trim_ascii_end();
            break;
        }
        spec.apply(word).map_err(|fault| ModuleError::BadWord { module, word, fault })?;
    }
    Ok(spec)
}

impl<'a> GuestSpec<'a> {
    fn apply(&mut self, word: &'a str) -> Result<(), Fault> {
        match word.split_once('=') {
            Some(("name", name)) if !name.is_empty() => self.name = name,
            Some(("mem", value)) => {
                self.mem = size(value)?;
                if self.mem > MAX_GUEST_MEM {
                    return Err(Fault::NotASize);
                }
            }
            Some(("vcpus", value)) => self.vcpus = number(value, 1, MAX_GUEST_VCPUS)?,
            None if word == "control" => self.control = true,
            _ => return Err(Fault::Unknown),
        }
        Ok(())
    }
}

/// One module in a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The module's string.
    pub args: &'a str,
    /// Where its bytes are in the bundle.
    pub data: Range<usize>,
}

/// What is wrong with a bundle, and at which byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleError {
    /// What was found.
    pub what: &'static str,
    /// In the member whose header is here.
    pub at: usize,
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, at } = self;
        write!(f, "bundle of boot modules: {what} at byte {at}; make it with cargo xtask and give it as -initrd")
    }
}

const NOT_CPIO: &str = "no uncompressed newc cpio archive";
const BROKEN: &str = "a broken header";
const TRUNCATED: &str = "the archive ends within the member";
const OUT_OF_ORDER: &str = "a member out of order";
const NOT_TEXT: &str = "arguments that are not UTF-8 text";
const TOO_MANY: &str = "more modules than are ever needed";

/// The most modules in a bundle.
const MAX_MEMBERS: usize = 64;
/// The most bytes in a member's name, which we know to be short.
const MAX_NAME: usize = 64;
/// Bytes in a newc header.
const HEADER: usize = 110;

/// Whether bytes begin as a member does.
fn is_member(bytes: &[u8]) -> bool {
    bytes.starts_with(b"070701")
}

/// Splits a bundle into its modules.
///
/// # Errors
/// Says what is broken and where.
pub fn split(bundle: &[u8]) -> Result<Vec<Member<'_>>, BundleError> {
    if !is_member(bundle) {
        return Err(BundleError { what: NOT_CPIO, at: 0 });
    }
    let mut members = Vec::new();
    let mut at = 0;
    loop {
        let module = members.len();
        let args = entry(bundle, at)?;
        if args.name == b"TRAILER!!!" {
            return Ok(members);
        }
        if module == MAX_MEMBERS {
            return Err(BundleError { what: TOO_MANY, at });
        }
        let data = entry(bundle, args.next)?;
        if !is_named(args.name, module, b".args") || !is_named(data.name, module, b".data") {
            return Err(BundleError { what: OUT_OF_ORDER, at });
        }
        let text = bundle.get(args.data).unwrap_or_default();
        let text = str::from_utf8(text).map_err(|_| BundleError { what: NOT_TEXT, at })?;
        members.push(Member { args: text.trim_matches(['\0', '\n', ' ']), data: data.data });
        at = data.next;
    }
}

/// One member of the archive.
struct Entry<'a> {
    name: &'a [u8],
    data: Range<usize>,
    next: usize,
}

/// Reads the member whose header is at byte `at` (`cpio(5)`, New ASCII Format).
///
/// Sizes have 32 bits and offsets 64, so the sums cannot overflow.
fn entry(bundle: &[u8], at: usize) -> Result<Entry<'_>, BundleError> {
    let (truncated, broken) = (BundleError { what: TRUNCATED, at }, BundleError { what: BROKEN, at });
    let header = bundle.get(at..at + HEADER).ok_or(truncated)?;
    let file_size = hex(&header[54..62]).ok_or(broken)?;
    let name_size = hex(&header[94..102]).ok_or(broken)?;
    if !is_member(header) || name_size == 0 || name_size > MAX_NAME {
        return Err(broken);
    }
    let name = bundle.get(at + HEADER..at + HEADER + name_size).ok_or(truncated)?;
    let name = name.strip_suffix(b"\0").ok_or(broken)?;
    let start = (at + HEADER + name_size).next_multiple_of(4);
    let end = start + file_size;
    if end > bundle.len() {
        return Err(truncated);
    }
    Ok(Entry { name, data: start..end, next: end.next_multiple_of(4) })
}

/// Eight hexadecimal digits.
fn hex(digits: &[u8]) -> Option<usize> {
    digits.iter().try_fold(0, |value: usize, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(value << 4 | usize::try_from(digit).ok()?)
    })
}

/// Whether `name` is the decimal `number` with `suffix` behind it.
fn is_named(name: &[u8], number: usize, suffix: &[u8]) -> bool {
    let digits = name.strip_suffix(suffix).and_then(|digits| str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()) == Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(name: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = format!(
            "070701{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
            1,
            0o100_644,
            0,
            0,
            1,
            0,
            data.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0
        )
        .into_bytes();
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn bundle(modules: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (i, (args, data)) in modules.iter().enumerate() {
            bytes.extend(member(&format!("{i}.args"), args.as_bytes()));
            bytes.extend(member(&format!("{i}.data"), data));
        }
        bytes.extend(member("TRAILER!!!", b""));
        bytes
    }

    #[test]
    fn a_kernel_with_its_initrd_becomes_dom0() {
        let roster = sort(&["kernel console=hvc0  quiet ", "initrd"]).unwrap();
        assert_eq!(roster.dom0, Some(Dom0Modules { kernel: 0, initrd: Some(1), cmdline: "console=hvc0  quiet" }));
        assert_eq!(roster.guests, []);
    }

    #[test]
    fn an_initrd_before_its_kernel_is_found_too() {
        assert_eq!(sort(&["initrd", "kernel"]).unwrap().dom0.unwrap().initrd, Some(0));
    }

    #[test]
    fn guests_keep_their_order_and_their_own_initrd() {
        let roster = sort(&["guest name=a mem=32 control vcpus=2 -- x -- y", "guest mem=1G", "guest-initrd"]).unwrap();
        let first = GuestSpec { name: "a", mem: 32 << 20, vcpus: 2, control: true, cmdline: "x -- y" };
        assert_eq!(roster.guests[0], GuestModules { image: 0, initrd: None, spec: first });
        assert_eq!(roster.guests[1].initrd, Some(2));
        assert_eq!(roster.guests[1].spec.name, "guest");
    }

    #[test]
    fn each_misuse_of_a_role_has_its_own_error() {
        assert_eq!(sort(&[]), Err(ModuleError::NothingToStart));
        assert_eq!(sort(&[""]), Err(ModuleError::UnknownRole { module: 0, word: "" }));
        assert_eq!(sort(&["vmlinuz quiet"]), Err(ModuleError::UnknownRole { module: 0, word: "vmlinuz" }));
        assert_eq!(sort(&["kernel", "kernel"]), Err(ModuleError::Twice { module: 1, role: "kernel" }));
        assert_eq!(sort(&["kernel", "initrd", "initrd"]), Err(ModuleError::Twice { module: 2, role: "initrd" }));
        let orphan = ModuleError::Orphan { module: 0, role: "initrd", owner: "kernel" };
        assert_eq!(sort(&["initrd", "guest"]), Err(orphan));
        let orphan = ModuleError::Orphan { module: 0, role: "guest-initrd", owner: "guest" };
        assert_eq!(sort(&["guest-initrd"]), Err(orphan));
        let bad = ModuleError::BadWord { module: 0, word: "vcpus=0", fault: Fault::NotInRange(1, MAX_GUEST_VCPUS) };
        assert_eq!(sort(&["guest vcpus=0"]), Err(bad));
        assert!(sort(&["guest memory=5"]).unwrap_err().to_string().contains("'memory=5'"));
    }

    #[test]
    fn a_bundle_is_split_into_its_modules_in_place() {
        let bytes = bundle(&[("kernel quiet\n", b"ELF"), ("initrd", b"")]);
        let members = split(&bytes).unwrap();
        assert_eq!(members.len(), 2);
        assert_eq!(members[0].args, "kernel quiet");
        assert_eq!(&bytes[members[0].data.clone()], b"ELF");
        assert_eq!(members[1].args, "initrd");
        assert!(members[1].data.is_empty());
    }

    #[test]
    fn a_bundle_cut_anywhere_is_truncated_and_never_half_used() {
        let bytes = bundle(&[("kernel", b"12345"), ("initrd", b"6789")]);
        for len in 6..bytes.len() {
            let cut = split(&bytes[..len]);
            // The padding behind the end mark's name carries nothing.
            let whole = len >= bytes.len() - 3;
            assert!(whole || matches!(cut, Err(BundleError { what: TRUNCATED, .. })), "{len}: {cut:?}");
        }
        assert_eq!(split(b"07070"), Err(BundleError { what: NOT_CPIO, at: 0 }));
        assert_eq!(split(&[0x1f, 0x8b]), Err(BundleError { what: NOT_CPIO, at: 0 }));
    }

    #[test]
    fn members_out_of_order_are_refused() {
        let mut bytes = member("1.args", b"kernel");
        bytes.extend(member("1.data", b""));
        assert_eq!(split(&bytes), Err(BundleError { what: OUT_OF_ORDER, at: 0 }));
        let mut bytes = member("0.args", b"kernel");
        bytes.extend(member("1.args", b""));
        assert_eq!(split(&bytes), Err(BundleError { what: OUT_OF_ORDER, at: 0 }));
    }

    proptest! {
        #[test]
        fn any_corruption_of_a_bundle_gives_ranges_inside_it(
            at in 0..400usize, value: u8, args in "[a-z ]{0,20}", data in proptest::collection::vec(any::<u8>(), 0..40)
        ) {
            let mut bytes = bundle(&[(&args, &data)]);
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(members) = split(&bytes) {
                for member in members {
                    prop_assert!(bytes.get(member.data).is_some());
                }
            }
        }

        #[test]
        fn any_strings_are_sorted_or_refused(strings in proptest::collection::vec("(kernel|initrd|guest|guest-initrd)? ?\\PC{0,20}", 0..5)) {
            let strings: Vec<_> = strings.iter().map(String::as_str).collect();
            if let Err(error) = sort(&strings) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
