// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus store`: the store's tree, by hand.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use guest_abi::DomId;
use serde::Serialize;

use crate::xenstore::SOCKET;
use crate::xenstore::client::{Client, Error, View};
use crate::xenstore::wire::Code;

/// What to do with the store, and how to reach it.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
    /// Reach the daemon of this domain by its socket [default: by the kernel, which also reaches another domain's]
    #[arg(long, global = true)]
    by_socket: bool,
    /// For programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a node and all below it
    Ls {
        /// The node
        #[arg(default_value = "/")]
        path: String,
        /// Whole paths, a node a line
        #[arg(long, short)]
        flat: bool,
        /// With permissions
        #[arg(long, short)]
        perms: bool,
    },
    /// Print values, one a line
    Read {
        /// The nodes
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Set values, all at once or none
    Write {
        /// Nodes and values in turn
        #[arg(required = true, value_names = ["PATH", "VALUE"], num_args = 2..)]
        pairs: Vec<String>,
    },
    /// Make nodes without a value, all at once or none
    Mkdir {
        /// The nodes
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Remove nodes and all below them, all at once or none
    Rm {
        /// The nodes
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Show a node's permissions, or set them
    Perms {
        /// The node
        path: String,
        /// The owner, with what domains may that are not named, then others: n none, r read, w write, b both, each with
        /// a domain's number: n0 r3
        perms: Vec<String>,
    },
    /// Print the path of each node that changes, at or below these
    Watch {
        /// The nodes, or @introduceDomain, @releaseDomain
        #[arg(required = true)]
        paths: Vec<String>,
        /// End after so many events; each watch has one at once
        #[arg(long, short = 'n')]
        count: Option<u32>,
        /// End after so many seconds
        #[arg(long, value_name = "S")]
        timeout: Option<f64>,
    },
    /// Show the limits of domains, or set them
    Quota {
        /// Of this domain [default: of all for which none is set]
        #[arg(long, short)]
        domain: Option<u16>,
        /// NAME=LIMIT, to set one
        set: Vec<String>,
    },
    /// Show what each domain has in the store
    Usage,
    /// Give the daemon a command of its own: help, check, print TEXT
    Control {
        /// The command and its arguments
        #[arg(required = true)]
        words: Vec<String>,
    },
}

/// A node as it is printed.
#[derive(Debug, Serialize)]
struct Node {
    path: String,
    /// Absent if the value is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// The value in hexadecimal, if it is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    perms: Option<Vec<String>>,
    #[serde(skip)]
    depth: usize,
}

/// Runs one of the store's commands.
///
/// # Errors
/// The store refuses, or cannot be reached.
pub fn run(options: &Options) -> Result<()> {
    let mut client = if options.by_socket { Client::by_socket(SOCKET) } else { Client::connect() }?;
    let json = options.json;
    match &options.command {
        Command::Ls { path, flat, perms } => list(&mut client, path, *flat, *perms, json),
        Command::Read { paths } => read(&mut client, paths, json),
        Command::Write { pairs } => write(&mut client, pairs),
        Command::Mkdir { paths } => each(&mut client, paths, |view, path| view.make(path)),
        Command::Rm { paths } => each(&mut client, paths, remove),
        Command::Perms { path, perms } => permissions(&mut client, path, perms, json),
        Command::Watch { paths, count, timeout } => watch(&mut client, paths, *count, *timeout, json),
        Command::Quota { domain, set } => quota(&mut client, domain.map(DomId::new), set, json),
        Command::Usage => usage(&mut client, json),
        Command::Control { words } => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            print_all(&(client.control(&words)? + "\n"))
        }
    }
}

/// Prints, and does not mind a reader that has had enough.
fn print_all(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing the output"),
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    print_all(&(serde_json::to_string_pretty(value)? + "\n"))
}

impl Node {
    fn new(path: String, value: Vec<u8>, perms: Option<Vec<String>>, depth: usize) -> Self {
        let (value, value_hex) = match String::from_utf8(value) {
            Ok(text) => (Some(text), None),
            Err(error) => (None, Some(error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect())),
        };
        Self { path, value, value_hex, perms, depth }
    }

    fn line(&self, flat: bool) -> String {
        let name = if flat { &self.path } else { self.path.rsplit('/').next().unwrap_or(&self.path) };
        let indent = if flat { 0 } else { self.depth };
        let value = match (&self.value, &self.value_hex) {
            (Some(text), _) => format!("\"{}\"", text.escape_default()),
            (None, hex) => format!("0x{}", hex.as_deref().unwrap_or_default()),
        };
        let perms = self.perms.as_ref().map_or_else(String::new, |perms| format!("  ({})", perms.join(",")));
        format!("{:indent$}{name} = {value}{perms}\n", "")
    }
}

fn list(client: &mut Client, path: &str, flat: bool, perms: bool, json: bool) -> Result<()> {
    let mut nodes = Vec::new();
    client.at_once(|view| collect(view, path, perms, 0, &mut nodes))?;
    // As in a file system, the node that was asked for is known.
    let shown = nodes.get(1..).unwrap_or_default();
    if json {
        return print_json(&shown);
    }
    print_all(&shown.iter().map(|node| node.line(flat)).collect::<String>())
}

fn collect(
    view: &mut View<'_>,
    path: &str,
    with_perms: bool,
    depth: usize,
    nodes: &mut Vec<Node>,
) -> Result<(), Error> {
    let value = view.read(path)?;
    let perms = with_perms.then(|| view.perms(path)).transpose()?;
    nodes.push(Node::new(path.to_owned(), value, perms, depth.saturating_sub(1)));
    for name in view.list(path)? {
        let child = if path == "/" { format!("/{name}") } else { format!("{path}/{name}") };
        match collect(view, &child, with_perms, depth + 1, nodes) {
            // In a guest, some nodes are not for its eyes.
            Err(error) if error.code() == Some(Code::Eacces) => {}
            other => other?,
        }
    }
    Ok(())
}

fn read(client: &mut Client, paths: &[String], json: bool) -> Result<()> {
    let values = client.at_once(|view| {
        paths.iter().map(|path| view.read(path).map(|value| (path, value))).collect::<Result<Vec<_>, _>>()
    })?;
    if json {
        let nodes = values.into_iter().map(|(path, value)| Node::new(path.clone(), value, None, 0));
        return print_json(&nodes.collect::<Vec<_>>());
    }
    for (_, value) in values {
        io::stdout().write_all(&value).context("writing the output")?;
        print_all("\n")?;
    }
    Ok(())
}

fn write(client: &mut Client, pairs: &[String]) -> Result<()> {
    ensure!(pairs.len().is_multiple_of(2), "{} has no value: give pairs of PATH VALUE", pairs[pairs.len() - 1]);
    client.transaction(|view| pairs.chunks(2).try_for_each(|pair| view.write(&pair[0], &pair[1])))?;
    Ok(())
}

fn each(client: &mut Client, paths: &[String], act: impl Fn(&mut View<'_>, &str) -> Result<(), Error>) -> Result<()> {
    client.transaction(|view| paths.iter().try_for_each(|path| act(view, path)))?;
    Ok(())
}

/// Removes a node that must be there: to the protocol one that is not is no error, to a user it is one.
fn remove(view: &mut View<'_>, path: &str) -> Result<(), Error> {
    view.perms(path)?;
    view.remove(path)
}

fn permissions(client: &mut Client, path: &str, perms: &[String], json: bool) -> Result<()> {
    if !perms.is_empty() {
        client.all().set_perms(path, perms)?;
        return Ok(());
    }
    let perms = client.all().perms(path)?;
    if json { print_json(&perms) } else { print_all(&(perms.join(" ") + "\n")) }
}

fn watch(client: &mut Client, paths: &[String], count: Option<u32>, timeout: Option<f64>, json: bool) -> Result<()> {
    for path in paths {
        client.watch(path, path)?;
    }
    let limit = timeout.map(Duration::try_from_secs_f64).transpose().context("--timeout: not a length of time")?;
    let end = limit.map(|limit| Instant::now() + limit);
    let mut seen = 0;
    while count.is_none_or(|count| seen < count) {
        let rest = end.map(|end| end.saturating_duration_since(Instant::now()));
        let Some(event) = client.event(rest)? else { break };
        seen += 1;
        let line = if json { serde_json::to_string(&event)? } else { event.path };
        print_all(&(line + "\n"))?;
    }
    Ok(())
}

fn quota(client: &mut Client, domain: Option<DomId>, set: &[String], json: bool) -> Result<()> {
    for pair in set {
        let (name, limit) = pair.split_once('=').with_context(|| format!("{pair}: give NAME=LIMIT"))?;
        let limit = limit.parse().with_context(|| format!("{pair}: {limit} is no limit"))?;
        client.set_quota(domain, name, limit)?;
    }
    if !set.is_empty() {
        return Ok(());
    }
    let names = client.quota(None, None)?;
    let limits = names.split(' ').map(|name| Ok((name.to_owned(), client.quota(domain, Some(name))?.parse()?)));
    let limits: Vec<(String, u32)> = limits.collect::<Result<_>>()?;
    if json {
        return print_json(&limits.into_iter().collect::<std::collections::BTreeMap<_, _>>());
    }
    print_all(&limits.iter().map(|(name, limit)| format!("{name:<18}{limit}\n")).collect::<String>())
}

fn usage(client: &mut Client, json: bool) -> Result<()> {
    let report = client.control(&["memreport"])?;
    if !json {
        return print_all(&report);
    }
    let mut domains = Vec::new();
    for line in report.lines() {
        let mut fields = serde_json::Map::new();
        for word in line.split(' ') {
            let Some((name, value)) = word.split_once('=') else { bail!("the daemon's report has `{word}`") };
            let value = value.parse::<u64>().map_or_else(|_| value.into(), serde_json::Value::from);
            fields.insert(name.to_owned(), value);
        }
        domains.push(fields);
    }
    print_json(&domains)
}
