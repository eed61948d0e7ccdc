// SPDX-License-Identifier: MIT OR Apache-2.0
//! The figures of `xtask bench`: read from what was measured, and held against goals.
//!
//! The micro-guest measures loops; the loop's own instructions are taken off. What the hypervisor spends is known
//! exactly for the null hypercall, whose guest side is a known number of instructions. The hypervisor's own counters
//! begin after an exit and end before an entry; what they miss is the same for every exit, so the null hypercall says
//! how much it is, and the others' figures are counted ticks plus that for each exit.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::devices::Devices;
use super::goals::Goal;
use super::guests::Guests;

/// What an exit and an entry cost a CPU beside instructions, in instructions, for the weighed sum.
const EXIT_WEIGHT: f64 = 1500.0;
/// Instructions of the null hypercall's guest side: number, two arguments, the call.
const NULL_GUEST_SIDE: f64 = 4.0;

/// One line of the micro-guest.
struct Sample {
    name: String,
    ops: f64,
    /// None where there is no sense in them.
    ticks: Option<f64>,
    /// None where the guest cannot tell.
    hv: Option<f64>,
    exits: f64,
}

/// One operation's cost, a time each.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figure {
    pub(super) name: String,
    /// All instructions of the machine; none where only the hypervisor's are known.
    pub(super) whole: Option<f64>,
    /// Those of the hypervisor; none where only the whole is known.
    pub(super) hypervisor: Option<f64>,
    pub(super) exits: f64,
    /// What the whole is without a hypervisor.
    pub(super) native: Option<f64>,
}

/// All that was measured.
pub(crate) struct Report {
    figures: Vec<Figure>,
    /// Instructions of an exit that the hypervisor's counters miss.
    stub: f64,
    pub(crate) dom0: Option<Dom0>,
    guests: Vec<Figure>,
    devices: Vec<Figure>,
    /// What is said below the table.
    remarks: Vec<String>,
}

/// What dom0 told.
pub(crate) struct Dom0 {
    /// Counters when the shell answered: exits, ticks.
    boot: (f64, f64),
    /// Hypercalls made by the null benchmark with their ticks, and the whole ticks of one.
    null: (f64, f64, f64),
    /// Sleeps of a millisecond, the exits and ticks that they took.
    sleep: (f64, f64, f64),
    /// Instructions from the hypervisor's start until dom0 was built.
    built: Option<f64>,
}

impl Report {
    /// Reads the machine's log of the micro-guest.
    pub(crate) fn read(log: &str) -> Result<Self> {
        let samples: Vec<Sample> = log.lines().filter_map(Sample::parse).collect();
        if let Some(failed) = log.lines().find(|line| line.contains(" FAIL ")) {
            bail!("the micro-guest says: {failed}");
        }
        let find = |name: &str| {
            samples.iter().find(|sample| sample.name == name).with_context(|| format!("no figure for {name}"))
        };
        let ticks = |sample: &Sample| {
            let ticks = sample.ticks.with_context(|| format!("{} has no ticks", sample.name))?;
            Ok::<f64, anyhow::Error>(sample.each(ticks))
        };
        let frame = ticks(find("loop")?)?;
        let null = find("null_hypercall")?;
        let counted = null.hv.context("null_hypercall has no part of the hypervisor")?;
        let stub = ticks(null)? - frame - NULL_GUEST_SIDE - null.each(counted);
        let figure = |sample: &Sample| Figure {
            name: sample.name.clone(),
            whole: sample.ticks.map(|ticks| sample.each(ticks) - frame),
            hypervisor: sample.hv.map(|hv| sample.each(hv) + sample.each(sample.exits) * stub),
            exits: sample.each(sample.exits),
            native: None,
        };
        let figures = samples.iter().filter(|sample| sample.name != "loop").map(figure).collect();
        Ok(Self { figures, stub, dom0: None, guests: Vec::new(), devices: Vec::new(), remarks: Vec::new() })
    }

    /// What the hypervisor spends on the operation of this name.
    pub(crate) fn cost(&self, name: &str) -> Result<f64> {
        let all = self.all();
        let figure = all.iter().find(|figure| figure.name == name).with_context(|| format!("no figure for {name}"))?;
        Ok(figure.hypervisor.unwrap_or_default().round())
    }

    /// Which goal of the operation of this name is missed, in words.
    pub(crate) fn missed(&self, name: &str) -> Result<Option<String>> {
        let all = self.all();
        let figure = all.iter().find(|figure| figure.name == name).with_context(|| format!("no figure for {name}"))?;
        Ok(figure.missed())
    }

    /// The same, where a goal's exits are out of reach: so many are allowed instead.
    pub(crate) fn missed_but_exits(&self, name: &str, exits: f64) -> Result<Option<String>> {
        let all = self.all();
        let figure = all.iter().find(|figure| figure.name == name).with_context(|| format!("no figure for {name}"))?;
        let held = Goal::of(name).with_context(|| format!("no goal for {name}"))?;
        Ok(figure.misses(&Goal { exits: Some(exits), ..held }))
    }

    fn all(&self) -> Vec<Figure> {
        let dom0 = self.dom0.iter().flat_map(|dom0| dom0.figures(self.stub));
        self.figures.iter().cloned().chain(dom0).chain(self.guests.iter().chain(&self.devices).cloned()).collect()
    }

    /// Adds what guests of dom0 cost.
    pub(crate) fn add_guests(&mut self, guests: &Guests) -> Result<()> {
        self.guests = guests.figures(self.stub)?;
        Ok(())
    }

    /// Adds what a guest's devices cost.
    pub(crate) fn add_devices(&mut self, devices: &Devices) -> Result<()> {
        self.devices = devices.figures(self.stub)?;
        self.remarks = devices.reasons();
        Ok(())
    }

    /// A table for people.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!(
            "{:<28}{:>12}{:>12}{:>10}{:>15}{:>12}{:>12}\n",
            "instructions each", "whole", "hypervisor", "exits", "whole+1500*ex", "goal", "Xen 4.17"
        );
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
        for figure in self.all() {
            let held = Goal::of(&figure.name);
            let goal = held.and_then(|held| held.goal.or(held.whole));
            let missed = if figure.missed().is_some() { "  missed" } else { "" };
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{:<28}{:>12}{:>12}{:>10.2}{:>15}{:>12}{:>12}{missed}",
                figure.name,
                number(figure.whole),
                number(figure.hypervisor),
                figure.exits,
                number(figure.weighed()),
                number(goal),
                number(held.and_then(|held| held.xen)),
            );
        }
        let _ = writeln!(
            text,
            "hypervisor: counted from exits to entries, and {:.0} for the rest of each exit; Xen's were measured with Linux; \
             goals and Xen's are for the hypervisor, or for the whole where only that is known",
            self.stub
        );
        for figure in self.all() {
            if let (Some(whole), Some(native)) = (figure.whole, figure.native) {
                let _ =
                    writeln!(text, "{}: {:.2} times the {native:.0} without a hypervisor", figure.name, whole / native);
            }
        }
        self.remarks.iter().for_each(|remark| text.extend([remark, "\n"]));
        text
    }

    /// The same for the book.
    pub(super) fn to_markdown(&self) -> String {
        let mut text = "| operation | whole | hypervisor | exits | whole + 1,500 × exits | goal | Xen 4.17 |\n\
                        |---|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
        let number = |value: Option<f64>| value.map_or_else(String::new, grouped);
        for figure in self.all() {
            let held = Goal::of(&figure.name);
            let ratio = figure.native.map(|native| format!("1.5 × {native:.0} natively"));
            let goal = ratio.unwrap_or_else(|| held.map_or_else(String::new, |held| held.in_words()));
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {:.2} | {} | {goal}{} | {} |",
                figure.name,
                number(figure.whole),
                number(figure.hypervisor),
                figure.exits,
                number(figure.weighed()),
                if figure.missed().is_some() { ", missed" } else { "" },
                number(held.and_then(|held| held.xen)),
            );
        }
        text
    }

    /// What a page's table says otherwise by more than a tenth, or does not have. Boots and sleeps, of which no whole is
    /// known, and bytes may differ: they depend on when the host answers.
    pub(crate) fn differences_from(&self, page: &str) -> Vec<String> {
        let told = |figure: &Figure, column: usize| {
            let line = page.lines().find(|line| line.starts_with(&format!("| `{}` |", figure.name)))?;
            line.split('|').nth(column)?.trim().replace(',', "").parse::<f64>().ok()
        };
        let difference = |figure: &Figure| {
            let (measured, column) = match figure.hypervisor {
                Some(hypervisor) => (hypervisor, 3),
                None => (figure.whole?, 2),
            };
            let may_differ = figure.whole.is_none() || figure.name.ends_with("_bytes");
            match told(figure, column) {
                None => Some(format!("{} is not in the book", figure.name)),
                Some(_) if may_differ => None,
                Some(told) if (told - measured).abs() <= 0.1 * told.max(measured) => None,
                Some(told) => Some(format!("{}: {measured:.0}, in the book {told:.0}", figure.name)),
            }
        };
        self.all().iter().filter_map(difference).collect()
    }

    /// The same for programs.
    pub(super) fn to_json(&self) -> Value {
        let one = |figure: &Figure| {
            let held = Goal::of(&figure.name);
            json!({
                "name": figure.name,
                "whole": figure.whole,
                "hypervisor": figure.hypervisor,
                "exits": figure.exits,
                "weighed": figure.weighed(),
                "native": figure.native,
                "goal_hypervisor": held.and_then(|held| held.goal),
                "goal_whole": held.and_then(|held| held.whole),
                "goal_exits": held.and_then(|held| held.exits),
                "xen": held.and_then(|held| held.xen),
            })
        };
        Value::Array(self.all().iter().map(one).collect())
    }
}

impl Sample {
    /// Reads `BENCH name ops=N ticks=N hv=N exits=N`, with anything before it; `ticks` and `hv` may be `-`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_once("BENCH ")?.1.split_whitespace();
        let name = words.next()?.to_owned();
        let mut value = |key: &str| match words.next()?.strip_prefix(key)?.strip_prefix('=')? {
            "-" => Some(None),
            number => number.parse::<f64>().ok().map(Some),
        };
        let (ops, ticks, hv, exits) = (value("ops")??, value("ticks")?, value("hv")?, value("exits")??);
        (ops > 0.0).then_some(Self { name, ops, ticks, hv, exits })
    }

    fn each(&self, all: f64) -> f64 {
        all / self.ops
    }
}

impl Figure {
    /// One of which only the whole is known.
    pub(super) fn whole(name: &str, whole: f64) -> Self {
        Self { name: name.to_owned(), whole: Some(whole), ..Self::default() }
    }

    /// The goal that it misses.
    fn missed(&self) -> Option<String> {
        self.misses(&Goal::of(&self.name)?)
    }

    /// In words, if it is worse. Instructions are whole ones; what is behind the point is the loop's.
    fn misses(&self, held: &Goal) -> Option<String> {
        let worse = |what: &str, measured: Option<f64>, goal: Option<f64>| {
            let (measured, goal) = (measured?, goal?);
            let text = format!("{}: {measured:.0} {what}, at most {goal:.0} is the goal", self.name);
            (measured.round() > goal).then_some(text)
        };
        let ratio = self.whole.zip(self.native).map(|(whole, native)| whole / native);
        let slow = ratio.zip(held.native).filter(|(ratio, goal)| ratio > goal);
        worse("instructions", self.hypervisor, held.goal)
            .or_else(|| worse("in all", self.whole, held.whole))
            .or_else(|| {
                let goal = held.exits.filter(|goal| self.exits > *goal)?;
                Some(format!("{}: {} exits, at most {goal} is the goal", self.name, self.exits))
            })
            .or_else(|| {
                slow.map(|(ratio, goal)| format!("{}: {ratio:.2} times native, at most {goal} is the goal", self.name))
            })
    }

    fn weighed(&self) -> Option<f64> {
        self.whole.map(|whole| whole + EXIT_WEIGHT * self.exits)
    }
}

impl Dom0 {
    /// Reads the output of the command: counters, the benchmark, counters, sleeps; and the machine's log.
    pub(crate) fn read(output: &str, log: &str) -> Result<Self> {
        let parts: Vec<Value> = serde_json::Deserializer::from_str(output)
            .into_iter()
            .collect::<Result<_, _>>()
            .context("dom0's figures")?;
        let [before, bench, after, sleep] = parts.as_slice() else { bail!("dom0 gave {} figures, not 4", parts.len()) };
        let hypercalls = |counters: &Value| -> Result<(f64, f64)> {
            let reasons = counters[0]["reasons"].as_array().context("counters have no reasons")?;
            let found = reasons.iter().find(|reason| reason["reason"] == "hypercall").context("no hypercalls")?;
            Ok((number(&found["exits"])?, number(&found["ticks"])?))
        };
        let (first, last) = (hypercalls(before)?, hypercalls(after)?);
        Ok(Self {
            boot: (number(&before[0]["exits"])?, number(&before[0]["ticks"])?),
            null: (last.0 - first.0, last.1 - first.1, number(&bench["median"])?),
            sleep: (number(&sleep["repetitions"])?, number(&sleep["exits"])?, number(&sleep["ticks"])?),
            built: log.lines().find(|line| line.contains("enters at")).and_then(stamp),
        })
    }

    fn figures(&self, stub: f64) -> Vec<Figure> {
        let ((exits, ticks), (calls, call_ticks, median)) = (self.boot, self.null);
        let (sleeps, sleep_exits, sleep_ticks) = self.sleep;
        let figure = |name: &str, whole, hypervisor, exits| Figure {
            name: name.to_owned(),
            whole,
            hypervisor: Some(hypervisor),
            exits,
            native: None,
        };
        let mut figures = vec![
            figure("dom0_null_hypercall", Some(median), call_ticks / calls + stub, 1.0),
            figure("nanosleep_1ms", None, (sleep_ticks + sleep_exits * stub) / sleeps, sleep_exits / sleeps),
            figure("dom0_boot", None, ticks + exits * stub, exits),
        ];
        if let Some(built) = self.built {
            figures.push(figure("entry_to_dom0_built", Some(built), built, 0.0));
        }
        figures
    }
}

/// A number with its digits in groups of three.
pub(super) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("{value} is no number"))
}

/// A log line's time in nanoseconds, which are instructions here: `(isthmus) [ 12.345678] INFO ...`.
fn stamp(line: &str) -> Option<f64> {
    let (seconds, _) = line.split_once('[')?.1.split_once(']')?;
    Some((seconds.trim().parse::<f64>().ok()? * 1e9).round())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "(isthmus) [    0.022199] INFO  d1 (bench): 64 MiB\r\n\
        (d1) BENCH loop ops=1000 ticks=2000 hv=0 exits=0\r\n\
        (d1) BENCH null_hypercall ops=1000 ticks=256000 hv=110000 exits=1000\r\n\
        (d1) PASS something\r\n\
        (d1) BENCH event_round_trip ops=100 ticks=160000 hv=110000 exits=200\r\n";

    #[test]
    fn the_null_hypercall_tells_what_counters_miss_of_an_exit() {
        let report = Report::read(LOG).unwrap();
        assert_eq!(report.stub, 256.0 - 2.0 - 4.0 - 110.0);
        let null = Figure { hypervisor: Some(250.0), exits: 1.0, ..Figure::whole("null_hypercall", 254.0) };
        assert_eq!(report.figures[0], null);
        assert_eq!(report.figures[1].hypervisor, Some(1100.0 + 2.0 * 140.0));
        assert_eq!(report.figures[1].weighed(), Some(1598.0 + 3000.0));
        assert!(report.to_text().lines().nth(1).unwrap().ends_with("missed"));
        let row = "| `event_round_trip` | 1,598 | 1,380 | 2.00 | 4,598 | 3,000 | 15,971 |";
        assert_eq!(report.to_markdown().lines().nth(3), Some(row));
        assert_eq!(report.cost("null_hypercall").unwrap(), 250.0);
        let missed = report.missed("null_hypercall").unwrap();
        assert_eq!(missed.as_deref(), Some("null_hypercall: 250 instructions, at most 200 is the goal"));
        assert_eq!(report.missed("event_round_trip").unwrap(), None);
        assert!(report.missed("no_such").is_err());
    }

    #[test]
    fn the_book_may_not_be_far_from_what_is_measured() {
        let report = Report::read(LOG).unwrap();
        let page = report.to_markdown();
        assert_eq!(report.differences_from(&page), Vec::<String>::new());
        let old = page.replace("| 1,380 |", "| 1,300 |").replace("| 250 |", "| 200 |");
        assert_eq!(report.differences_from(&old), ["null_hypercall: 250, in the book 200"]);
        assert_eq!(report.differences_from("").len(), 2);
    }

    #[test]
    fn a_part_that_is_out_of_reach_is_held_where_it_is() {
        let name = "tcp_round_trip";
        let figure = Figure { hypervisor: Some(16_320.0), exits: 7.12, ..Figure::whole(name, 73_324.0) };
        let report = Report { devices: vec![figure], ..Report::read(LOG).unwrap() };
        assert!(report.missed(name).unwrap().unwrap().contains("7.12 exits, at most 7 is"));
        assert_eq!(report.missed_but_exits(name, 7.2).unwrap(), None);
        assert!(report.missed_but_exits(name, 7.1).unwrap().unwrap().contains("at most 7.1"));
        assert!(report.to_markdown().contains("| 80,000 / 20,000 / 7, missed | 129,641 |"));
    }

    #[test]
    fn what_is_missing_or_failed_is_said() {
        assert!(Report::read("").is_err());
        let failed = format!("{LOG}(d1) FAIL a page is copied: got 1\n");
        assert!(Report::read(&failed).err().unwrap().to_string().contains("a page is copied"));
    }

    #[test]
    fn dom0s_figures_are_differences_of_its_counters() {
        let counters = |calls: u64| {
            json!([{ "exits": 8000, "ticks": 3_000_000,
                     "reasons": [{ "reason": "hypercall", "exits": calls, "ticks": calls * 110 }] }])
        };
        let sleeps = json!({ "repetitions": 10, "exits": 30, "ticks": 50_000 });
        let output = format!("{:#}\n{}\n{:#}\n{sleeps}", counters(100), json!({ "median": 900 }), counters(1100));
        let dom0 = Dom0::read(&output, "(isthmus) [    0.041000] INFO  d0 (dom0): enters at 0x1\r\n").unwrap();
        let figures = dom0.figures(140.0);
        assert_eq!((figures[0].hypervisor, figures[0].whole), (Some(250.0), Some(900.0)));
        assert_eq!((figures[1].hypervisor, figures[1].exits), (Some(5420.0), 3.0));
        assert_eq!((figures[2].hypervisor, figures[2].exits), (Some(3_000_000.0 + 8000.0 * 140.0), 8000.0));
        assert_eq!(figures[3].whole, Some(41e6));
        let busy = Figure { exits: 30_001.0, ..figures[2].clone() };
        assert_eq!(busy.missed().as_deref(), Some("dom0_boot: 30001 exits, at most 30000 is the goal"));
        assert_eq!((figures[2].missed(), figures[3].missed()), (None, None));
    }

    #[test]
    fn a_guests_goals_are_for_the_whole_and_against_the_bare_machine() {
        let missed = |figure: Figure| figure.missed().unwrap_or_default();
        assert_eq!(missed(Figure::whole("create_256", 90e6)), "");
        assert!(missed(Figure::whole("create_256", 91e6)).contains("91000000 in all"));
        let clock = Figure { native: Some(100.0), ..Figure::whole("guest_clock_6.1", 150.0) };
        assert_eq!(missed(clock.clone()), "");
        assert!(missed(Figure { whole: Some(151.0), ..clock.clone() }).contains("1.51 times native"));
        assert!(missed(Figure { exits: 0.25, ..clock }).contains("0.25 exits"));
    }
}
