// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus`: the control domain's one command.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use dom0_tools::cli::guests::{self, Act, Ask, Which};
use dom0_tools::cli::selftest::Mix;
use dom0_tools::console::attach::Options;
use dom0_tools::devices::{DiskConfig, Network, NicConfig, driver};
use dom0_tools::sys::signal;
use dom0_tools::toolstack::Start;
use dom0_tools::{agent, cli, supervisor};
use guest_abi::DomId;

/// Controls the Isthmus hypervisor from its control domain.
///
/// Exit status: 0 done, 1 failed (the reason is on standard error), 2 wrong usage.
#[derive(Parser)]
#[command(name = "isthmus", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a guest and start it
    Create {
        /// The guest's description, see the book's reference of guest.toml
        file: PathBuf,
        /// Do not start it: isthmus unpause does
        #[arg(long)]
        paused: bool,
        /// For tests: have the call of this number that is made to the hypervisor fail
        #[arg(long, value_name = "N", hide = true, default_value_t = 0)]
        fail_call: u32,
        /// Attach to its console at once
        #[arg(long, short = 'c', conflicts_with = "json")]
        console: bool,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Show all domains
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Attach to a guest's console; Ctrl-] detaches
    Console(Console),
    /// Stop guests for a while
    Pause(Guests),
    /// Let guests go on
    Unpause(Guests),
    /// Ask a guest to power off
    Shutdown(AskGuest),
    /// Ask a guest to start again
    Reboot(AskGuest),
    /// End guests at once, without asking them
    Destroy(Guests),
    /// Wait until a guest has ended, and say why. Exit status 3: the time was over before
    Wait {
        /// The guest, by name or number
        guest: String,
        /// Wait for so long at most
        #[arg(long, value_name = "S")]
        timeout: Option<u64>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Show a domain's share of the CPUs, or change it until it ends
    Share {
        /// The domain, by name or number
        guest: String,
        /// Its share against that of others, which have 256
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        weight: Option<u16>,
        /// Hundredths of one CPU that it may use at most; 0 for no limit
        #[arg(long, value_parser = clap::value_parser!(u16).range(..=3200))]
        cap: Option<u16>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Serve consoles, and do what is to be done when guests end (started by dom0's init)
    Supervisor,
    /// Make a guest that has ended anew (called by the supervisor)
    #[command(hide = true)]
    RestartGuest {
        /// Its name
        guest: String,
    },
    /// Show the hypervisor's version and what it knows of the machine, or what is known of one domain
    Info {
        /// Of this domain, by name or number, instead of the machine
        domain: Option<String>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Show what each vCPU has cost: exits and ticks in the hypervisor by reason, hypercalls by number
    Counters {
        /// Of this domain only [default: all]
        domain: Option<u16>,
        /// What each CPU has done between runs of vCPUs instead: runs, halts, interrupts to other CPUs, ticks
        #[arg(long, conflicts_with = "domain")]
        cpus: bool,
        /// How much they grow in so many seconds, instead of all since the domain's start
        #[arg(long, value_name = "S")]
        interval: Option<f64>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Give a running guest a disk, until it ends
    BlockAttach {
        /// The guest, by name or number
        guest: String,
        /// A file or a block device of dom0
        source: PathBuf,
        /// Its name in the guest: xvda to xvdz
        disk: String,
        /// The guest can only read it
        #[arg(long)]
        readonly: bool,
        /// The domain that serves it, of which SOURCE is a file or block device [default: dom0]
        #[arg(long, value_name = "DOMAIN")]
        backend: Option<String>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Take a disk from a guest
    BlockDetach {
        /// The guest, by name or number
        guest: String,
        /// Its name in the guest: xvda to xvdz
        disk: String,
        /// Take it away also if the guest does not let go of it within five seconds
        #[arg(long)]
        force: bool,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Give a running guest a network card, until it ends
    NetAttach {
        /// The guest, by name or number
        guest: String,
        /// The card's number in the guest, from 0
        card: u32,
        /// What it is connected to
        #[arg(long, value_enum, default_value_t)]
        network: Network,
        /// The bridge that it is in [default: isthmus0]
        #[arg(long)]
        bridge: Option<String>,
        /// Its address [default: made of the guest's uuid]
        #[arg(long)]
        mac: Option<String>,
        /// The largest packet, if not the usual 1500 bytes
        #[arg(long)]
        mtu: Option<u16>,
        /// The domain that serves it, in which the bridge is [default: dom0]
        #[arg(long, value_name = "DOMAIN")]
        backend: Option<String>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Take a network card from a guest
    NetDetach {
        /// The guest, by name or number
        guest: String,
        /// The card's number in the guest, from 0
        card: u32,
        /// Take it away also if the guest does not let go of it within five seconds
        #[arg(long)]
        force: bool,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Serve devices of other guests: to be run in a guest that they name as backend
    Driver,
    /// Show what domains and their devices have done: requests, bytes, grants mapped and copied, exits by reason
    ///
    /// The hypervisor knows by whom a grant is used and not for which device. Network backends copy, and map for reading;
    /// block backends with persistent grants map for writing. Devices that cannot be told apart by this have one number
    /// together, which says so.
    Stats {
        /// Of this domain, by name or number [default: all]
        domain: Option<String>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Measure single operations in ticks of the TSC
    #[command(subcommand)]
    Bench(Bench),
    /// Check from inside this domain that the hypervisor's services work
    #[command(subcommand)]
    Selftest(Selftest),
    /// Look at the store through which domains find each other's devices, and change it
    Store(cli::store::Options),
    /// Serve that store (started by dom0's init)
    Xenstored(cli::xenstored::Options),
    /// Run the host's commands that arrive on a serial line (started by dom0's init)
    Agent {
        /// The serial device
        #[arg(default_value = "/dev/ttyS1")]
        line: PathBuf,
    },
}

#[derive(Args)]
struct Console {
    /// The guest, by name or number
    guest: String,
    /// Watch only: what is typed does not go to the guest
    #[arg(long)]
    read_only: bool,
    /// Print what it has written so far, instead of attaching; also of a guest that has ended
    #[arg(long)]
    log: bool,
    /// Print what it has written to its serial line (COM1, earlyprintk=serial) so far
    #[arg(long, conflicts_with = "log")]
    serial: bool,
    /// Leave when the guest has written this
    #[arg(long, value_name = "TEXT")]
    until: Option<String>,
    /// Leave after this time, with status 3
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
}

#[derive(Args)]
struct Guests {
    /// The guests, by name or number
    #[arg(required = true)]
    guests: Vec<String>,
    /// For programs: a line for each guest
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct AskGuest {
    /// The guest, by name or number
    guest: String,
    /// Wait until it has ended, for so many seconds at most if given; status 3 if it has not
    #[arg(long, value_name = "S", num_args = 0..=1)]
    wait: Option<Option<u64>>,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// A hypercall that only answers, through privcmd
    NullHypercall {
        /// How often to call
        #[arg(long, default_value_t = 10_000)]
        repetitions: usize,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Mapping, touching and unmapping 256 frames of a guest
    ForeignMap {
        /// The guest, by name or number
        guest: String,
        /// How often
        #[arg(long, default_value_t = 20)]
        repetitions: usize,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// What the hypervisor does for a thread that sleeps for a millisecond
    Sleep {
        /// How often to sleep
        #[arg(long, default_value_t = 1000)]
        repetitions: u32,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// What a guest's disk and network card cost, with isthmus bench device-server in the guest
    Devices {
        /// The guest, by name or number
        guest: String,
        /// Where it listens
        address: SocketAddr,
        /// For programs: a line for each operation
        #[arg(long)]
        json: bool,
    },
    /// In a guest: do what isthmus bench devices in dom0 asks for
    DeviceServer {
        /// The disk that is read and written; what it holds is lost
        #[arg(long, value_name = "DEVICE")]
        disk: Option<PathBuf>,
        /// The TCP port to listen on
        #[arg(long, default_value_t = 5000)]
        port: u16,
    },
    /// Asking the system for the time; on any machine
    Clock {
        /// How often to ask a hundred times
        #[arg(long, default_value_t = 1_000)]
        repetitions: usize,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// A command, from its start to its end
    Command {
        /// For programs; behind what the command prints
        #[arg(long)]
        json: bool,
        /// The command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

#[derive(Subcommand)]
enum Selftest {
    /// Grant pages to this domain itself, map and copy them, and check what must be refused
    Grants {
        /// This domain's number
        #[arg(long, default_value_t = 0)]
        domain: u16,
    },
    /// Connect two event-channel ports of this domain and signal both ways
    Events {
        /// This domain's number
        #[arg(long, default_value_t = 0)]
        domain: u16,
        /// How many events each way
        #[arg(long, default_value_t = 100)]
        count: u32,
    },
    /// Map frames of a guest of 64 MiB or more, with holes between them
    Foreign {
        /// The guest, by name or number
        guest: String,
    },
    /// Check that devices are confined by an IOMMU, or that DMA goes through a buffer of the kernel's
    Dma,
    /// Overwrite a disk or a file in random order past the page cache, and check every block that is read
    Disk {
        /// The disk or file; what it holds is lost
        path: PathBuf,
        /// Requests of each job, half of them writes
        #[arg(long, default_value_t = 1000)]
        operations: u32,
        /// Requests at the same time
        #[arg(long, default_value_t = 4)]
        jobs: u32,
        /// What the order depends on
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Read the kernel's clock on all CPUs at once: it must never go back
    Steps {
        /// For how long
        #[arg(long, default_value_t = 3)]
        seconds: u32,
    },
    /// Pause a running guest and let it go on, many times
    Pauses {
        /// The guest, by name or number
        guest: String,
        /// How often
        #[arg(long, default_value_t = 1000)]
        count: u32,
    },
    /// Compare the kernel's clock with the ACPI power-management timer
    Clock {
        /// For how long
        #[arg(long, default_value_t = 3)]
        seconds: u32,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("isthmus: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    if matches!(command, Command::List { .. } | Command::Info { .. } | Command::Counters { .. } | Command::Stats { .. })
    {
        signal::end_with_the_reader();
    }
    match command {
        Command::Create { file, paused, fail_call, console, json } => {
            guests::create(&file, if paused { Start::Paused } else { Start::Running }, fail_call, console, json)
        }
        Command::List { json } => guests::list(json),
        Command::Console(Console { guest, log: true, .. }) => guests::print_log(&guest, Which::Console),
        Command::Console(Console { guest, serial: true, .. }) => guests::print_log(&guest, Which::Serial),
        Command::Console(Console { guest, read_only, until, timeout, .. }) => {
            guests::console(&guest, &Options { read_only, until, timeout: timeout.map(Duration::from_secs) })
        }
        Command::Pause(Guests { guests, json }) => guests::act(Act::Pause, &guests, json),
        Command::Unpause(Guests { guests, json }) => guests::act(Act::Unpause, &guests, json),
        Command::Destroy(Guests { guests, json }) => guests::act(Act::Destroy, &guests, json),
        Command::Shutdown(AskGuest { guest, wait, json }) => guests::ask_guest(Ask::Poweroff, &guest, wait, json),
        Command::Reboot(AskGuest { guest, wait, json }) => guests::ask_guest(Ask::Reboot, &guest, wait, json),
        Command::Wait { guest, timeout, json } => guests::wait(&guest, timeout, json),
        Command::Share { guest, weight, cap, json } => guests::share(&guest, weight, cap, json),
        Command::RestartGuest { guest } => guests::restart(&guest),
        Command::Info { domain: Some(domain), json } => guests::info(&domain, json),
        Command::Supervisor => done(supervisor::run()),
        Command::Info { domain: None, json } => done(cli::info::run(json)),
        Command::BlockAttach { guest, source, disk, readonly, backend, json } => {
            let config = DiskConfig { source, name: Some(disk.clone()), readonly, backend };
            done(cli::devices::block_attach(&guest, &disk, config, json))
        }
        Command::Driver => done(driver::run()),
        Command::BlockDetach { guest, disk, force, json } => {
            done(cli::devices::block_detach(&guest, &disk, force, json))
        }
        Command::NetAttach { guest, card, network, bridge, mac, mtu, backend, json } => {
            done(cli::devices::net_attach(&guest, card, NicConfig { network, bridge, mac, mtu, backend }, json))
        }
        Command::NetDetach { guest, card, force, json } => done(cli::devices::net_detach(&guest, card, force, json)),
        Command::Stats { domain, json } => done(cli::devices::show_stats(domain.as_deref(), json)),
        Command::Counters { cpus: true, interval, json, .. } => done(cli::counters::run_cpus(interval, json)),
        Command::Counters { domain, interval, json, .. } => done(cli::counters::run(domain, interval, json)),
        Command::Bench(Bench::NullHypercall { repetitions, json }) => {
            done(cli::bench::null_hypercall(repetitions, json))
        }
        Command::Bench(Bench::ForeignMap { guest, repetitions, json }) => {
            done(cli::bench::foreign_map(&guest, repetitions, json))
        }
        Command::Bench(Bench::Clock { repetitions, json }) => done(cli::bench::clock(repetitions, json)),
        Command::Bench(Bench::Command { json, words }) => done(cli::bench::command(&words, json)),
        Command::Bench(Bench::Devices { guest, address, json }) => {
            done(cli::bench::devices::measure(&guest, address, json))
        }
        Command::Bench(Bench::DeviceServer { disk, port }) => done(cli::bench::devices::serve(disk.as_deref(), port)),
        Command::Bench(Bench::Sleep { repetitions, json }) => done(cli::bench::sleep(repetitions, json)),
        Command::Selftest(Selftest::Grants { domain }) => done(cli::selftest::grants(DomId::new(domain))),
        Command::Selftest(Selftest::Events { domain, count }) => done(cli::selftest::events(DomId::new(domain), count)),
        Command::Selftest(Selftest::Foreign { guest }) => done(cli::selftest::foreign(&guest)),
        Command::Selftest(Selftest::Dma) => done(cli::info::check_dma()),
        Command::Selftest(Selftest::Disk { path, operations, jobs, seed }) => {
            done(cli::selftest::disk(&path, Mix { operations, jobs, seed }))
        }
        Command::Selftest(Selftest::Steps { seconds }) => done(cli::selftest::steps(seconds)),
        Command::Selftest(Selftest::Pauses { guest, count }) => done(cli::selftest::pauses(&guest, count)),
        Command::Selftest(Selftest::Clock { seconds }) => done(cli::selftest::clock(seconds)),
        Command::Agent { line } => done(agent::serve(agent::open_line(&line)?, agent::power_off)),
        Command::Store(options) => done(cli::store::run(&options)),
        Command::Xenstored(options) => done(cli::xenstored::run(&options)),
    }
}

fn done(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}
