// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernel modules: which files a list of names needs, and the tables that modprobe reads.
//!
//! What a module depends on and which devices it drives stand in the module itself (section
//! `.modinfo`, strings `depends=` and `alias=`). So neither depmod nor the tables that Debian makes
//! on installation are needed, and the tables in dom0 name exactly what is there.
//!
//! Source: Linux `include/linux/module.h`, MODULE_INFO; modules.dep(5).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};

/// The modules of one kernel that go into dom0.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// By name, as modprobe normalizes it.
    modules: BTreeMap<String, Module>,
    /// Names on the list that this kernel has neither as a module nor built in.
    pub(super) missing: Vec<String>,
}

#[derive(Debug)]
struct Module {
    /// Below `lib/modules/RELEASE`, without the suffix of a compression.
    path: String,
    bytes: Vec<u8>,
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// Reads the modules in `list` and all that they depend on.
pub(super) fn select(tree: &Path, list: &[&str]) -> Result<Selection> {
    let mut index = BTreeMap::new();
    find(&tree.join("kernel"), &mut index)?;
    let built_in = built_in(tree)?;
    let mut selection = Selection::default();
    let mut wanted: Vec<String> = list.iter().rev().map(|name| normalized(name)).collect();
    while let Some(name) = wanted.pop() {
        if selection.modules.contains_key(&name) || built_in.contains(&name) {
            continue;
        }
        let Some(file) = index.get(&name) else {
            selection.missing.push(name);
            continue;
        };
        let module = Module::read(tree, file)?;
        wanted.extend(module.depends.iter().cloned());
        selection.modules.insert(name, module);
    }
    Ok(selection)
}

impl Selection {
    /// The files below `lib/modules/RELEASE`: modules and tables.
    pub(super) fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files: Vec<_> =
            self.modules.values().map(|module| (module.path.clone(), module.bytes.clone())).collect();
        let (mut dep, mut alias) = (String::new(), String::new());
        for (name, module) in &self.modules {
            // The deepest dependency stands last: modprobe loads from the end.
            let mut order = Vec::new();
            self.dependencies(name, &mut order, 0)?;
            order.reverse();
            write!(dep, "{}:", module.path)?;
            for path in order.iter().filter(|path| **path != module.path) {
                write!(dep, " {path}")?;
            }
            dep.push('\n');
            for pattern in &module.aliases {
                writeln!(alias, "alias {pattern} {name}")?;
            }
        }
        files.push(("modules.dep".to_owned(), dep.into_bytes()));
        files.push(("modules.alias".to_owned(), alias.into_bytes()));
        Ok(files)
    }

    /// Appends the paths of `name` and what it depends on, dependencies first.
    fn dependencies<'a>(&'a self, name: &str, order: &mut Vec<&'a str>, depth: usize) -> Result<()> {
        ensure!(depth < 32, "module {name} depends on itself");
        let Some(module) = self.modules.get(name) else { return Ok(()) };
        for needed in &module.depends {
            self.dependencies(needed, order, depth + 1)?;
        }
        if !order.contains(&module.path.as_str()) {
            order.push(&module.path);
        }
        Ok(())
    }
}

impl Module {
    fn read(tree: &Path, file: &Path) -> Result<Self> {
        let context = || format!("module {}", file.display());
        let packed = fs::read(file).with_context(context)?;
        let bytes = unpack(file, packed).with_context(context)?;
        let path = file.strip_prefix(tree).with_context(context)?.to_str().context("the path is not UTF-8")?;
        let path = path.find(".ko").map_or(path, |at| &path[..at + 3]).to_owned();
        let info = modinfo(&bytes).with_context(context)?;
        let values = |key: &str| -> Vec<&str> { info.iter().filter_map(|line| line.strip_prefix(key)).collect() };
        let depends = values("depends=").into_iter().flat_map(|list| list.split(',')).filter(|name| !name.is_empty());
        let depends = depends.map(normalized).collect();
        let aliases = values("alias=").into_iter().map(str::to_owned).collect();
        Ok(Self { path, bytes, depends, aliases })
    }
}

fn find(dir: &Path, index: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for item in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = item?.path();
        if path.is_dir() {
            find(&path, index)?;
        } else if let Some((name, _)) = path.file_name().and_then(|name| name.to_str()?.split_once(".ko")) {
            index.insert(normalized(name), path);
        }
    }
    Ok(())
}

fn built_in(tree: &Path) -> Result<BTreeSet<String>> {
    let file = tree.join("modules.builtin");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let names = text.lines().filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"));
    Ok(names.map(normalized).collect())
}

/// Module names and file names differ in dashes only.
fn normalized(name: &str) -> String {
    name.replace('-', "_")
}

fn unpack(file: &Path, packed: Vec<u8>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match file.extension().and_then(|suffix| suffix.to_str()) {
        Some("xz") => lzma_rust2::XzReader::new(packed.as_slice(), false).read_to_end(&mut bytes)?,
        Some("gz") => flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes)?,
        Some("zst") => ruzstd::decoding::StreamingDecoder::new(packed.as_slice())
            .map_err(|error| anyhow::anyhow!("{error}"))?
            .read_to_end(&mut bytes)?,
        _ => return Ok(packed),
    };
    Ok(bytes)
}

/// The strings of section `.modinfo`.
fn modinfo(elf: &[u8]) -> Result<Vec<&str>> {
    let header = FileHeader64::<LittleEndian>::parse(elf).context("it is not a 64-bit ELF")?;
    let sections = header.sections(LittleEndian, elf)?;
    let (_, section) = sections.section_by_name(LittleEndian, b".modinfo").context("it has no .modinfo")?;
    let data = section.data(LittleEndian, elf)?;
    Ok(data.split(|byte| *byte == 0).filter_map(|line| std::str::from_utf8(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::{Module, Selection};

    fn module(path: &str, depends: &[&str]) -> Module {
        let depends = depends.iter().map(|name| (*name).to_owned()).collect();
        Module { path: path.into(), bytes: vec![1], depends, aliases: vec!["pci:v1*".into()] }
    }

    #[test]
    fn the_table_lists_the_deepest_dependency_last() {
        let mut selection = Selection::default();
        for (name, depends) in [("a", vec!["b", "c"]), ("b", vec!["c"]), ("c", vec![])] {
            selection.modules.insert(name.into(), module(&format!("kernel/{name}.ko"), &depends));
        }
        let files = selection.files().unwrap();
        let text =
            |name: &str| String::from_utf8(files.iter().find(|(path, _)| path == name).unwrap().1.clone()).unwrap();
        assert_eq!(
            text("modules.dep"),
            "kernel/a.ko: kernel/b.ko kernel/c.ko\nkernel/b.ko: kernel/c.ko\nkernel/c.ko:\n"
        );
        assert!(text("modules.alias").starts_with("alias pci:v1* a\n"));
    }

    #[test]
    fn modules_that_depend_on_each_other_are_an_error() {
        let mut selection = Selection::default();
        selection.modules.insert("a".into(), module("a.ko", &["b"]));
        selection.modules.insert("b".into(), module("b.ko", &["a"]));
        assert!(selection.files().is_err());
    }
}
