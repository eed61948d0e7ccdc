// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest is made of: the file that `isthmus create` takes.
//!
//! The file is TOML. A field that is not known is an error, with its line, because a misspelt one would be a
//! guest that is not what its owner thinks. Names of files are taken from the folder that the guest's file is in.
//! The reference is `docs/src/reference/guest-toml.md`; its examples are read by a test below.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::devices::{DiskConfig, NicConfig, VirtualDisk};
use crate::toolstack::DOM0_NAME;

/// What a domain has at most. The hypervisor's limit.
pub const MAX_VCPUS: u32 = 32;
/// The longest name: it is part of file names.
const MAX_NAME: usize = 64;

/// A guest's description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// What it is called: letters, digits, `-`, `_` and `.`, not a number.
    pub name: String,
    /// Its kernel: a bzImage or an ELF file.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// Memory in MiB.
    pub memory: u64,
    /// Virtual CPUs.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Its share of the CPUs against that of others.
    #[serde(default = "ordinary")]
    pub weight: u16,
    /// Hundredths of one CPU that it may use at most; 0 for no limit.
    #[serde(default)]
    pub cap: u16,
    /// What identifies the machine to itself; a new one is made if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Its disks.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// Its network cards.
    #[serde(default, rename = "nic", skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicConfig>,
    /// Whether it has a xenstore connection.
    #[serde(default = "yes")]
    pub xenstore: bool,
    /// What to do when it powers off.
    #[serde(default = "destroy")]
    pub on_poweroff: Action,
    /// What to do when it reboots.
    #[serde(default = "restart")]
    pub on_reboot: Action,
    /// What to do when it crashes.
    #[serde(default = "destroy")]
    pub on_crash: Action,
}

/// What becomes of a domain that has ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is destroyed.
    Destroy,
    /// It is destroyed and made anew, under another number.
    Restart,
    /// It is kept, stopped, until somebody destroys it.
    Preserve,
}

fn one() -> u32 {
    1
}

/// The weight of a domain about which nothing is said.
pub const ORDINARY_WEIGHT: u16 = 256;

fn ordinary() -> u16 {
    ORDINARY_WEIGHT
}

fn yes() -> bool {
    true
}

fn destroy() -> Action {
    Action::Destroy
}

fn restart() -> Action {
    Action::Restart
}

/// Why a description is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// The file is no TOML, lacks a field or has one that is not known.
    #[error("{}: {}", path.display(), cause.to_string().trim_end())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        cause: Box<toml::de::Error>,
    },
    /// A field has a value that cannot be.
    #[error("{}: {field} = {value}: {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it, and what would be right.
        reason: &'static str,
    },
}

impl GuestConfig {
    /// Reads a guest's file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        Self::parse(&text, path)
    }

    /// Reads a guest's description; `path` is where it comes from.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let parsed: Result<Self, _> = toml::from_str(text);
        let mut config =
            parsed.map_err(|cause| ConfigError::Parse { path: path.to_owned(), cause: Box::new(cause) })?;
        config.check(path)?;
        // Whole, since it is made again from another folder than the one in which it was described.
        let whole = std::path::absolute(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        let folder = whole.parent().unwrap_or(Path::new("/"));
        config.kernel = folder.join(&config.kernel);
        config.initrd = config.initrd.map(|initrd| folder.join(initrd));
        config.disks.iter_mut().for_each(|disk| disk.source = folder.join(&disk.source));
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let refuse = |field, value: &dyn fmt::Display, reason| {
            Err(ConfigError::Value { path: path.to_owned(), field, value: value.to_string(), reason })
        };
        if let Err(reason) = check_name(&self.name) {
            return refuse("name", &format!("{:?}", self.name), reason);
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return refuse("vcpus", &self.vcpus, "a domain has from 1 to 32 vCPUs");
        }
        if self.weight == 0 {
            return refuse("weight", &self.weight, "give from 1 to 65535; 256 is what other domains have");
        }
        if u32::from(self.cap) > self.vcpus * 100 {
            return refuse("cap", &self.cap, "give hundredths of one CPU, at most 100 for each vCPU; 0 is no limit");
        }
        if self.memory == 0 || self.memory > pvh_loader::plan::MAX_GUEST_MEM >> 20 {
            return refuse("memory", &self.memory, "give MiB, from 1 to 262144");
        }
        if self.cmdline.contains(['\0', '\n']) {
            return refuse("cmdline", &format!("{:?}", self.cmdline), "a kernel's command line is one line of text");
        }
        if !(self.xenstore || self.disks.is_empty() && self.nics.is_empty()) {
            return refuse("xenstore", &false, "a guest finds its disks and network cards in xenstore");
        }
        let names: Vec<String> = (0..).zip(&self.disks).map(|(at, disk)| disk.name_at(at)).collect();
        for (at, (disk, name)) in self.disks.iter().zip(&names).enumerate() {
            if VirtualDisk::from_name(name).is_none() {
                return refuse("disk.name", &format!("{name:?}"), "disks are called xvda to xvdz");
            }
            if names[..at].contains(name) {
                return refuse("disk.name", &format!("{name:?}"), "another disk of the guest has this name");
            }
            let is_elsewhere = disk.backend.as_deref().is_some_and(|name| name != DOM0_NAME);
            if is_elsewhere && !disk.source.is_absolute() {
                let reason = "with a backend it is a file or a device there: give a path that begins with /";
                return refuse("disk.source", &disk.source.display(), reason);
            }
        }
        for nic in &self.nics {
            if let Err((field, value, reason)) = nic.check() {
                return refuse(field, &value, reason);
            }
        }
        Ok(())
    }
}

/// Whether a domain can be called so.
///
/// # Errors
/// Why not.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_fine) || name.starts_with('.') {
        return Err("a name has 1 to 64 letters, digits, '-', '_' and '.', and does not begin with '.'");
    }
    if name.chars().all(|c| c.is_ascii_digit()) {
        return Err("a name that is a number would be taken for a domain's number");
    }
    if matches!(name, "dom0" | "Domain-0") {
        return Err("this is the control domain's name");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "name = \"web1\"\nkernel = \"vmlinuz\"\nmemory = 256\n";

    fn parse(text: &str) -> Result<GuestConfig, String> {
        GuestConfig::parse(text, Path::new("/etc/guests/web1.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn files_of_a_description_in_the_own_folder_have_whole_paths() {
        let here = std::env::current_dir().unwrap();
        let config = GuestConfig::parse(SMALL, Path::new("web1.toml")).unwrap();
        assert_eq!(config.kernel, here.join("vmlinuz"));
        let config = GuestConfig::parse(SMALL, Path::new("guests/web1.toml")).unwrap();
        assert_eq!(config.kernel, here.join("guests/vmlinuz"));
    }

    #[test]
    fn three_fields_are_a_guest_and_files_are_beside_it() {
        let config = parse(SMALL).unwrap();
        assert_eq!(config.kernel, Path::new("/etc/guests/vmlinuz"));
        assert_eq!((config.vcpus, config.initrd, config.cmdline.as_str()), (1, None, ""));
        let actions = [config.on_poweroff, config.on_reboot, config.on_crash];
        assert_eq!(actions, [Action::Destroy, Action::Restart, Action::Destroy]);
        let absolute = parse(&SMALL.replace("vmlinuz", "/boot/vmlinuz")).unwrap();
        assert_eq!(absolute.kernel, Path::new("/boot/vmlinuz"));
    }

    #[test]
    fn an_unknown_field_is_named_with_its_line() {
        let error = parse(&format!("{SMALL}vcpu = 2\n")).unwrap_err();
        for words in ["/etc/guests/web1.toml", "line 4", "vcpu", "unknown field"] {
            assert!(error.contains(words), "{words} in {error}");
        }
        let error = parse("name = \"x\"\nkernel = \"k\"\n").unwrap_err();
        assert!(error.contains("missing field `memory`"), "{error}");
        let error = parse(&SMALL.replace("256", "\"256\"")).unwrap_err();
        assert!(error.contains("line 3"), "{error}");
        let error = parse(&format!("{SMALL}on_crash = \"reboot\"\n")).unwrap_err();
        assert!(error.contains("line 4") && error.contains("preserve"), "{error}");
    }

    #[test]
    fn values_that_cannot_be_are_refused_with_the_reason() {
        for (from, to, words) in [
            ("web1", "7", "number"),
            ("web1", "a/b", "letters"),
            ("web1", "", "letters"),
            ("web1", "dom0", "control domain"),
            ("256", "0", "MiB"),
            ("256", "262145", "MiB"),
            ("memory", "vcpus = 33\nmemory", "32"),
            ("memory", "weight = 0\nmemory", "65535"),
            ("memory", "cap = 101\nmemory", "hundredths"),
            ("memory", "cmdline = \"a\\nb\"\nmemory", "one line"),
        ] {
            let error = parse(&SMALL.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(words), "{words} in {error}");
        }
    }

    #[test]
    fn a_disk_of_a_driver_domain_has_no_path_beside_the_description() {
        let disk = |source: &str, backend: &str| {
            parse(&format!("{SMALL}[[disk]]\nsource = \"{source}\"\nbackend = \"{backend}\"\n"))
        };
        assert!(disk("d.img", "storage").unwrap_err().contains("begins with /"));
        assert_eq!(disk("/srv/d.img", "storage").unwrap().disks[0].source, Path::new("/srv/d.img"));
        assert_eq!(disk("d.img", "dom0").unwrap().disks[0].source, Path::new("/etc/guests/d.img"));
    }

    #[test]
    fn a_card_is_in_a_bridge_or_behind_dom0s_address() {
        let nic = |text: &str| parse(&format!("{SMALL}[[nic]]\n{text}\n")).map(|config| config.nics[0].clone());
        assert_eq!(nic("").unwrap().bridge(), "isthmus0");
        assert_eq!(nic("bridge = 'br0'").unwrap().bridge(), "br0");
        assert_eq!(nic("network = 'nat'\nbackend = 'dom0'").unwrap().bridge(), "isthmus-nat");
        for (text, words) in [
            ("network = 'nat'\nbridge = 'br0'", "nic.network = \"nat\": it has a bridge of its own"),
            ("network = 'nat'\nbackend = 'net'", "no driver domain does"),
            ("network = 'wifi'", "expected `bridge` or `nat`"),
            ("bridge = 'a/b'", "nic.bridge = \"a/b\""),
            ("mac = '1'", "nic.mac = \"1\""),
        ] {
            let error = nic(text).unwrap_err();
            assert!(error.contains(words), "{words} in {error}");
        }
    }

    #[test]
    fn the_books_examples_are_descriptions() {
        let page = include_str!("../../docs/src/reference/guest-toml.md");
        let examples: Vec<&str> = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(examples.len(), 4);
        for example in examples {
            parse(example).unwrap();
        }
        // Each field has its row.
        let config = serde_json::to_value(parse(&format!("{SMALL}initrd = \"i\"\n")).unwrap()).unwrap();
        for field in config.as_object().unwrap().keys().map(String::as_str).chain(["uuid"]) {
            assert!(page.contains(&format!("| `{field}` |")), "{field} is not in the book");
        }
    }

    #[test]
    fn a_description_survives_being_written_down() {
        let config =
            parse(&format!("{SMALL}initrd = \"i\"\nuuid = \"6ba7b810-9dad-11d1-80b4-00c04fd430c8\"\n")).unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<GuestConfig>(&json).unwrap(), config);
    }
}
