// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands about guests: create, list, pause, unpause, shutdown, reboot, destroy, wait, console.
//!
//! Each error begins with the command's object, so that a script's log says which guest it was about.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_abi::DomId;
use guest_abi::domctl::{GetDomainInfo, XEN_DOMINF_DYING};
use serde::Serialize;

use crate::builder::{Progress, Silent};
use crate::config::{GuestConfig, check_name};
use crate::console::attach::{Left, Options, attach};
use crate::console::log;
use crate::registry::{End, Reason, State};
use crate::toolstack::{Guest, Start, Toolstack};

/// How often a command that waits for a guest looks at it.
const LOOK: Duration = Duration::from_millis(100);
/// How often a guest is asked that does not end.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Exit status of a command that has waited for too long.
const STATUS_TIMED_OUT: u8 = 3;
/// Frames in a MiB.
const FRAMES_SHIFT: u32 = 8;

/// What is told of a domain.
#[derive(Debug, Serialize)]
struct Line {
    id: u16,
    name: String,
    state: &'static str,
    memory_mib: u64,
    max_memory_mib: u64,
    vcpus: u32,
    online_vcpus: u32,
    cpu_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boots: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<End>,
}

impl Line {
    fn of(guest: &Guest) -> Self {
        let GetDomainInfo { tot_pages, max_pages, cpu_time, nr_online_vcpus, max_vcpu_id, .. } = guest.info;
        let ended = match guest.record.as_ref().map(|record| &record.state) {
            Some(State::Running { ended, .. }) => ended.clone(),
            _ => guest.shutdown().map(End::from),
        };
        Self {
            id: guest.id.raw(),
            name: guest.name.clone(),
            state: guest.state(),
            memory_mib: tot_pages >> FRAMES_SHIFT,
            max_memory_mib: max_pages >> FRAMES_SHIFT,
            vcpus: max_vcpu_id + 1,
            online_vcpus: nr_online_vcpus,
            cpu_seconds: Duration::from_nanos(cpu_time).as_secs_f64(),
            uuid: guest.record.as_ref().map(|record| record.uuid.to_string()),
            boots: guest.record.as_ref().map(|record| record.boots),
            ended,
        }
    }
}

/// What a command says of the guest that it was about, for programs.
#[derive(Serialize)]
struct Done<'a> {
    name: &'a str,
    id: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<&'a End>,
}

/// Says that something was done to a guest: for programs, or these words, if there are any.
pub(super) fn print_done(
    json: bool,
    name: &str,
    id: DomId,
    ended: Option<&End>,
    text: impl FnOnce() -> Option<String>,
) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(&Done { name, id: id.raw(), ended })?);
    } else if let Some(text) = text() {
        println!("{text}");
    }
    Ok(())
}

/// `isthmus create`.
///
/// # Errors
/// What is wrong with the file, or why the guest could not be made.
pub fn create(file: &Path, start: Start, fail_call: u32, and_attach: bool, json: bool) -> Result<ExitCode> {
    let config = GuestConfig::read(file)?;
    let name = config.name.clone();
    let tools = Toolstack::open()?;
    tools.privcmd.fail_call(fail_call);
    let mut progress: Box<dyn Progress> =
        if std::io::stderr().is_terminal() { Box::new(OnTerminal::new()) } else { Box::new(Silent) };
    let made = tools.create(&config, start, progress.as_mut());
    drop(progress);
    let id = made.with_context(|| format!("creating {name}"))?;
    print_done(json, &name, id, None, || Some(format!("{name} is domain {}", id.raw())))?;
    if and_attach { console(&name, &Options::default()) } else { Ok(ExitCode::SUCCESS) }
}

/// `isthmus restart-guest`, which the supervisor calls.
///
/// # Errors
/// Why the guest could not be made again.
pub fn restart(name: &str) -> Result<ExitCode> {
    Toolstack::open()?.restart(name, &mut Silent).with_context(|| format!("restarting {name}"))?;
    Ok(ExitCode::SUCCESS)
}

/// `isthmus list`.
///
/// # Errors
/// The hypervisor does not answer.
pub fn list(json: bool) -> Result<ExitCode> {
    let lines: Vec<Line> = Toolstack::open()?.guests()?.iter().map(Line::of).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    } else {
        print!("{}", table(&lines));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0).max(4);
    let mut text =
        format!("{:>5}  {:<width$}  {:<8}  {:>7}  {:>5}  {:>9}\n", "ID", "NAME", "STATE", "MEM/MiB", "VCPUS", "TIME/s");
    for line in lines {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:>5}  {:<width$}  {:<8}  {:>7}  {:>5}  {:>9.1}",
            line.id, line.name, line.state, line.memory_mib, line.vcpus, line.cpu_seconds
        );
    }
    text
}

/// `isthmus info NAME`.
///
/// # Errors
/// There is no such domain.
pub fn info(name: &str, json: bool) -> Result<ExitCode> {
    let tools = Toolstack::open()?;
    let guest = tools.find(name).with_context(|| format!("looking for {name}"))?;
    let line = Line::of(&guest);
    let (weight, cap) = tools.privcmd.share(guest.id)?;
    if json {
        let mut value = serde_json::to_value(&line)?;
        value["weight"] = weight.into();
        value["cap"] = cap.into();
        value["ports"] = tools.privcmd.ports_in_use(guest.id)?.into();
        value["grant_frames"] = tools.privcmd.grant_frames(guest.id)?.into();
        if let Some(record) = &guest.record {
            value["config"] = serde_json::to_value(&record.config)?;
            value["started"] = record.started.into();
        }
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("name:           {}\nid:             {}\nstate:          {}", line.name, line.id, line.state);
    if let Some(end) = &line.ended {
        println!("ended:          {end}");
    }
    println!("memory:         {} of at most {} MiB", line.memory_mib, line.max_memory_mib);
    println!("vCPUs:          {} online of {}", line.online_vcpus, line.vcpus);
    println!("CPU time:       {:.1} s", line.cpu_seconds);
    let cap = if cap == 0 { "no limit".to_owned() } else { format!("at most {cap} % of a CPU") };
    println!("share:          weight {weight}, {cap}");
    if let Some(record) = &guest.record {
        println!("uuid:           {}\nboots:          {}", record.uuid, record.boots);
        println!("kernel:         {}\ncmdline:        {}", record.config.kernel.display(), record.config.cmdline);
        println!("console log:    {}", log::path(&line.name).display());
    }
    Ok(ExitCode::SUCCESS)
}

/// `isthmus share`: shows a domain's share of the CPUs, or changes it until it ends.
///
/// # Errors
/// There is no such domain.
pub fn share(name: &str, weight: Option<u16>, cap: Option<u16>, json: bool) -> Result<ExitCode> {
    let tools = Toolstack::open()?;
    let verb = || format!("the share of {name}");
    let guest = tools.find(name).with_context(verb)?;
    if weight.or(cap).is_some() {
        tools.privcmd.set_share(guest.id, weight, cap).with_context(verb)?;
    }
    let (weight, cap) = tools.privcmd.share(guest.id).with_context(verb)?;
    if json {
        println!("{}", serde_json::json!({ "name": guest.name, "id": guest.id.raw(), "weight": weight, "cap": cap }));
    } else {
        println!("weight {weight}, cap {cap}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What a command does with one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Stop it for a while.
    Pause,
    /// Let it go on.
    Unpause,
    /// End it at once.
    Destroy,
}

/// `isthmus pause`, `unpause` and `destroy`.
///
/// # Errors
/// There is no such domain, or it is in no state for this.
pub fn act(act: Act, names: &[String], json: bool) -> Result<ExitCode> {
    let tools = Toolstack::open()?;
    for name in names {
        let verb = match act {
            Act::Pause => "pausing",
            Act::Unpause => "unpausing",
            Act::Destroy => "destroying",
        };
        let guest = tools.find_settled(name).with_context(|| format!("{verb} {name}"))?;
        if guest.id == DomId::DOM0 {
            bail!("{verb} {name}: this is the control domain");
        }
        match act {
            Act::Pause if guest.state() == "paused" => bail!("pausing {name}: it is paused already"),
            Act::Unpause if guest.state() != "paused" => bail!("unpausing {name}: it is not paused"),
            Act::Pause => tools.privcmd.pause_domain(guest.id).map_err(anyhow::Error::from),
            Act::Unpause => tools.privcmd.unpause_domain(guest.id).map_err(anyhow::Error::from),
            Act::Destroy => tools.destroy(&guest, &Reason::Destroyed.into()),
        }
        .with_context(|| format!("{verb} {name}"))?;
        print_done(json, &guest.name, guest.id, None, || None)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a guest is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To switch itself off.
    Poweroff,
    /// To start again.
    Reboot,
}

/// `isthmus shutdown` and `reboot`.
///
/// # Errors
/// There is no such domain, or it does not listen.
pub fn ask_guest(ask: Ask, name: &str, wait: Option<Option<u64>>, json: bool) -> Result<ExitCode> {
    let (how, verb) = match ask {
        Ask::Poweroff => ("poweroff", "shutting down"),
        Ask::Reboot => ("reboot", "rebooting"),
    };
    let tools = Toolstack::open()?;
    let guest = tools.find(name).with_context(|| format!("{verb} {name}"))?;
    let listens = tools.request_shutdown(&guest, how).with_context(|| format!("{verb} {name}"))?;
    match wait {
        None if !listens => bail!(
            "{verb} {name}: it has not said that it listens to {how} requests (is it still starting?); --wait asks \
             until it does, isthmus destroy ends it"
        ),
        None => print_done(json, &guest.name, guest.id, None, || None).map(|()| ExitCode::SUCCESS),
        Some(seconds) => wait_for(&tools, &guest, seconds, json, Some(how)),
    }
}

/// `isthmus wait`.
///
/// # Errors
/// There is no such domain and never was.
pub fn wait(name: &str, timeout: Option<u64>, json: bool) -> Result<ExitCode> {
    let tools = Toolstack::open()?;
    match tools.find(name) {
        Ok(guest) => wait_for(&tools, &guest, timeout, json, None),
        // It may be over already.
        Err(error) => match tools.record(name)?.map(|record| record.state) {
            Some(State::Ended { domain, end }) => told(name, DomId::new(domain), &end, json),
            _ => Err(error.context(format!("waiting for {name}"))),
        },
    }
}

/// Waits until this run of a guest is over. A request is made again now and then: a guest may not listen yet, and a
/// kernel that cannot start its `/sbin/poweroff` yet says that it has heard, and drops it.
fn wait_for(
    tools: &Toolstack,
    guest: &Guest,
    timeout: Option<u64>,
    json: bool,
    request: Option<&str>,
) -> Result<ExitCode> {
    let deadline = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let name = &guest.name;
    let mut asked = Instant::now();
    loop {
        if let Some(how) = request.filter(|_| asked.elapsed() >= ASK_AGAIN) {
            asked = Instant::now();
            // A guest that is on its way out cannot be asked, and need not be.
            let _ = tools.request_shutdown(guest, how);
        }
        let info = tools.privcmd.domain(guest.id)?.filter(|info| info.handle == guest.info.handle);
        let lives = info.is_some_and(|info| info.flags & XEN_DOMINF_DYING == 0);
        let record = tools.record(name)?.filter(|_| guest.record.is_some());
        match record.map(|record| record.state) {
            Some(State::Ended { domain, end }) if domain == guest.id.raw() => return told(name, guest.id, &end, json),
            Some(State::Running { ended: Some(end), domain, .. }) if domain == guest.id.raw() => {
                return told(name, guest.id, &end, json);
            }
            // It runs again under another number: this run is over.
            Some(State::Running { domain, .. }) if domain != guest.id.raw() => {
                return told(name, guest.id, &Reason::Reboot.into(), json);
            }
            Some(_) => {}
            None if !lives => return told(name, guest.id, &Reason::Destroyed.into(), json),
            None => {
                if let Some(reason) = info.as_ref().and_then(crate::toolstack::shutdown_reason) {
                    return told(name, guest.id, &reason.into(), json);
                }
            }
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            eprintln!("isthmus: waiting for {name}: it has not ended in {} s", timeout.unwrap_or(0));
            return Ok(ExitCode::from(STATUS_TIMED_OUT));
        }
        std::thread::sleep(LOOK);
    }
}

fn told(name: &str, id: DomId, end: &End, json: bool) -> Result<ExitCode> {
    print_done(json, name, id, Some(end), || Some(end.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

/// `isthmus console`.
///
/// # Errors
/// There is no such guest, or the supervisor does not run.
pub fn console(name: &str, options: &Options) -> Result<ExitCode> {
    let name = &name_of(name)?;
    match attach(name, options).with_context(|| format!("the console of {name}"))? {
        Left::Detached | Left::Found => Ok(ExitCode::SUCCESS),
        Left::Closed if options.until.is_some() => {
            bail!("the console of {name}: it ended before it wrote what was waited for")
        }
        Left::Closed => Ok(ExitCode::SUCCESS),
        Left::TimedOut => {
            eprintln!("isthmus: the console of {name}: the time is over");
            Ok(ExitCode::from(STATUS_TIMED_OUT))
        }
    }
}

/// Which of a guest's two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Of its console.
    Console,
    /// Of its serial line.
    Serial,
}

/// `isthmus console --log` and `--serial`: what a guest has written, whether it still runs or not.
///
/// # Errors
/// There is no such log.
pub fn print_log(name: &str, which: Which) -> Result<ExitCode> {
    let name = &name_of(name)?;
    // What is on its way is written first.
    crate::supervisor::nudge();
    let path = match which {
        Which::Console => log::path(name),
        Which::Serial => log::serial_path(name),
    };
    let older = std::fs::read(format!("{}.1", path.display())).unwrap_or_default();
    let newest = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!(
                "the log of {name}: {} does not exist: no guest of this name has written anything there",
                path.display()
            )
        }
        other => other.with_context(|| format!("the log of {name}: {}", path.display()))?,
    };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&older).and_then(|()| stdout.write_all(&newest)).context("writing to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// A guest's name, by its name or its number.
fn name_of(name: &str) -> Result<String> {
    if name.parse::<u16>().is_ok() {
        return Ok(Toolstack::open()?.find(name)?.name);
    }
    // It becomes part of a file's name.
    check_name(name).map_err(|reason| anyhow::anyhow!("{name}: {reason}")).map(|()| name.to_owned())
}

/// Progress as one line that is written over.
struct OnTerminal {
    step: String,
    started: Instant,
    is_shown: bool,
}

impl OnTerminal {
    /// What is quicker than this needs no progress.
    const QUIET: Duration = Duration::from_millis(500);

    fn new() -> Self {
        Self { step: String::new(), started: Instant::now(), is_shown: false }
    }

    fn show(&mut self, more: &str) {
        if self.started.elapsed() >= Self::QUIET {
            self.is_shown = true;
            eprint!("\r\x1b[K{}{more}", self.step);
        }
    }
}

impl Progress for OnTerminal {
    fn step(&mut self, what: &str) {
        what.clone_into(&mut self.step);
        self.show("");
    }

    fn done(&mut self, bytes: u64, of: u64) {
        let percent = (bytes * 100).checked_div(of).unwrap_or(100);
        self.show(&format!(" {percent} %"));
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use guest_abi::domctl::{XEN_DOMINF_PAUSED, XEN_DOMINF_SHUTDOWN, XEN_DOMINF_SHUTDOWNSHIFT};
    use guest_abi::sched::SHUTDOWN_CRASH;

    use super::*;

    fn guest(id: u16, name: &str, flags: u32) -> Guest {
        let info =
            GetDomainInfo { domain: id, flags, tot_pages: 65536, cpu_time: 1_234_000_000, ..GetDomainInfo::default() };
        Guest { id: DomId::new(id), name: name.to_owned(), info, record: None }
    }

    #[test]
    fn the_list_lines_up_and_says_what_each_does() {
        let crashed = XEN_DOMINF_SHUTDOWN | SHUTDOWN_CRASH << XEN_DOMINF_SHUTDOWNSHIFT;
        let lines = [guest(0, "dom0", 0), guest(12, "a-long-name", XEN_DOMINF_PAUSED), guest(13, "c", crashed)];
        let lines: Vec<Line> = lines.iter().map(Line::of).collect();
        let table = table(&lines);
        let mut widths = table.lines().map(str::len);
        let first = widths.next();
        assert!(widths.all(|width| Some(width) == first), "{table}");
        assert!(table.contains("   12  a-long-name  paused        256      1        1.2\n"), "{table}");
        assert!(table.contains("crashed"), "{table}");
    }
}
