// SPDX-License-Identifier: MIT OR Apache-2.0

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

/// Video memory that outlives the screen.
#[derive(Clone)]
struct Memory(Rc<RefCell<Vec<u8>>>);

impl Memory {
    fn new(geometry: &Geometry) -> Self {
        // What was there before is none of the log's.
        Self(Rc::new(RefCell::new(vec![0x5a; geometry.size_bytes().unwrap()])))
    }
}

impl Surface for Memory {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.0.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

const fn field(position: u8) -> Field {
    Field { position, size: 8 }
}

const RGB: Cell = Cell::Pixel { bytes: 4, red: field(16), green: field(8), blue: field(0) };

const fn pixels(width: usize, height: usize) -> Geometry {
    Geometry { pitch: width * 4 + 12, width, height, cell: RGB }
}

const TEXT: Geometry = Geometry { pitch: 160, width: 80, height: 25, cell: Cell::Text };

fn attached(geometry: Geometry) -> (Screen<Memory>, Memory) {
    let memory = Memory::new(&geometry);
    let mut screen = Screen::blank();
    assert!(screen.attach(memory.clone(), geometry));
    (screen, memory)
}

/// The characters of VGA's text mode.
fn text_rows(memory: &Memory) -> Vec<String> {
    let bytes = memory.0.borrow();
    let row = |row: &[u8]| row.chunks(2).map(|cell| char::from(cell[0])).collect::<String>().trim_end().to_owned();
    bytes.chunks(160).map(row).collect()
}

/// Reads characters back from pixels by comparing with every glyph.
fn read_pixels(memory: &Memory, geometry: &Geometry, style: Style) -> Vec<String> {
    let bytes = memory.0.borrow();
    let pixels = Pixels::new(geometry.cell, style);
    let cell = |row: usize, column: usize| {
        let is_it = |character: &u8| {
            let glyph = get_raster(char::from(*character), FontWeight::Regular, HEIGHT).unwrap();
            glyph.rows().enumerate().all(|(y, line)| {
                let at = (row * GLYPH_HEIGHT + y) * geometry.pitch + column * GLYPH_WIDTH * 4;
                bytes[at..].starts_with(pixels.line(line).bytes())
            })
        };
        char::from((b' '..=b'~').find(is_it).expect("no glyph"))
    };
    let row = |row| (0..geometry.columns()).map(|column| cell(row, column)).collect::<String>().trim_end().to_owned();
    (0..geometry.rows()).map(row).collect()
}

#[test]
fn every_character_is_readable_in_pixels() {
    let geometry = pixels(GLYPH_WIDTH * 100 + 3, GLYPH_HEIGHT * 4 + 5);
    let (mut screen, memory) = attached(geometry);
    let all: Vec<u8> = (b' '..=b'~').collect();
    screen.print(&all);
    assert_eq!(read_pixels(&memory, &geometry, Style::Log)[0], String::from_utf8(all).unwrap());
}

#[test]
fn an_alarm_starts_on_an_empty_screen_of_its_own_colour() {
    let geometry = pixels(400, 200);
    let (mut screen, memory) = attached(geometry);
    screen.print(b"something\nelse\n");
    screen.clear(Style::Alarm);
    screen.print(b"PANIC");
    let rows = read_pixels(&memory, &geometry, Style::Alarm);
    assert_eq!(rows[0], "PANIC");
    assert!(rows[1..].iter().all(String::is_empty));
    let paper = Pixels::new(RGB, Style::Alarm).pixel(0).to_le_bytes();
    let bytes = memory.0.borrow();
    assert_eq!(bytes[199 * geometry.pitch + 399 * 4..][..4], paper, "the margin, too");
    assert_eq!(bytes[400 * 4..400 * 4 + 12], [0x5a; 12], "what lies between the lines is not the screen's");
}

#[test]
fn a_full_screen_moves_up_by_half() {
    let (mut screen, memory) = attached(TEXT);
    for i in 0..25 {
        screen.print(format!("line {i}\r\n").as_bytes());
    }
    let rows = text_rows(&memory);
    assert_eq!((rows[0].as_str(), rows[12].as_str(), rows[13].as_str()), ("line 12", "line 24", ""));
    screen.print(b"next");
    assert_eq!(text_rows(&memory)[13], "next");
}

#[test]
fn what_was_printed_before_there_is_a_screen_is_shown_on_it() {
    let mut screen = Screen::blank();
    screen.print(b"early\n");
    (0..80).for_each(|i| screen.print(format!("{i}\n").as_bytes()));
    let memory = Memory::new(&TEXT);
    assert!(screen.attach(memory.clone(), TEXT));
    assert!(text_rows(&memory).contains(&"79".to_owned()));
    screen.detach().unwrap();
    screen.print(b"unseen");
    assert!(!text_rows(&memory).contains(&"unseen".to_owned()));
}

#[test]
fn long_lines_tabs_and_other_bytes() {
    let (mut screen, memory) = attached(TEXT);
    screen.print(&[b'x'; 81]);
    screen.print(b"\r\ta\x1b\xff");
    let rows = text_rows(&memory);
    assert_eq!(rows[0], "x".repeat(80));
    assert_eq!(rows[1], "        a??");
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    let wide = |pitch| Geometry { pitch, ..TEXT };
    assert_eq!(wide(159).size_bytes(), None, "lines overlap");
    assert_eq!(wide(usize::MAX).size_bytes(), None);
    assert_eq!(pixels(7, 200).size_bytes().is_some(), GLYPH_WIDTH <= 7, "no room for a character");
    let deep = Cell::Pixel { bytes: 4, red: Field { position: 20, size: 10 }, green: field(10), blue: field(0) };
    assert_eq!(Geometry { cell: deep, ..pixels(800, 600) }.size_bytes(), None, "more than 8 bits of a colour");
    let outside = Cell::Pixel { bytes: 2, red: field(16), green: field(8), blue: field(0) };
    assert_eq!(Geometry { cell: outside, ..pixels(800, 600) }.size_bytes(), None, "a colour outside of its pixel");
    assert!(!Screen::blank().attach(Memory(Rc::default()), wide(1)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_text_stays_within_any_video_memory(
        width in 1..120usize, height in 1..60usize, pad in 0..9usize, bytes in 2..5usize,
        text in proptest::collection::vec(any::<u8>(), 0..200)
    ) {
        let cell = Cell::Pixel { bytes, red: Field { position: 11, size: 5 }, green: Field { position: 5, size: 6 }, blue: Field { position: 0, size: 5 } };
        let geometry = Geometry { pitch: width * bytes + pad, width, height, cell };
        if geometry.size_bytes().is_some() {
            // Memory panics at what is outside.
            let (mut screen, _) = attached(geometry);
            screen.print(&text);
            screen.clear(Style::Alarm);
            screen.print(&text);
        }
    }
}
