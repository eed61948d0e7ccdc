// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log on a screen, for machines that nobody has a serial cable for.
//!
//! A [`Screen`] is a grid of characters that remembers what it shows, so that nothing is ever read from video memory,
//! which is slow. It draws into a [`Surface`] only what differs from what is there. When the grid is full, its lower
//! half moves up: a line then costs two repaints of itself on average, and not the whole screen.
//!
//! Two kinds of video memory are known, as boot loaders hand them over: pixels with a place for each of the three
//! colours, and the cells of VGA's text mode. Lines from before there is a surface are kept and drawn when it comes.
//! What is not printable ASCII is shown as a question mark; log lines have nothing else.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// Pixels of a character, from left to right.
pub const GLYPH_WIDTH: usize = get_raster_width(FontWeight::Regular, HEIGHT);
/// Pixels of a character, from top to bottom.
pub const GLYPH_HEIGHT: usize = HEIGHT.val();
const HEIGHT: RasterHeight = RasterHeight::Size16;

/// The most characters of a line that are used.
const MAX_COLUMNS: usize = 160;
/// The most lines that are used.
const MAX_ROWS: usize = 64;
const TAB: usize = 8;

/// How video memory is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes from one line (of pixels, or of characters) to the next.
    pub pitch: usize,
    /// Pixels or characters of a line.
    pub width: usize,
    /// Lines.
    pub height: usize,
    /// What stands there.
    pub cell: Cell,
}

/// The unit of video memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// A pixel of so many bytes (2 to 4), least significant first, with the colours where they say.
    Pixel {
        /// Bytes of a pixel.
        bytes: usize,
        /// Red.
        red: Field,
        /// Green.
        green: Field,
        /// Blue.
        blue: Field,
    },
    /// A character and its attribute, a byte each.
    Text,
}

/// Bits of a pixel that hold one colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The lowest.
    pub position: u8,
    /// How many, at most 8.
    pub size: u8,
}

impl Geometry {
    /// Bytes of video memory, or `None` if this is no layout that can be drawn to.
    #[must_use]
    pub fn size_bytes(&self) -> Option<usize> {
        let cell_bytes = match self.cell {
            Cell::Text => 2,
            Cell::Pixel { bytes, red, green, blue } => {
                let fits = |field: Field| field.size <= 8 && usize::from(field.position + field.size) <= bytes * 8;
                if !(2..=4).contains(&bytes) || ![red, green, blue].into_iter().all(fits) {
                    return None;
                }
                bytes
            }
        };
        let is_usable = self.columns() > 0 && self.rows() > 0 && self.width.checked_mul(cell_bytes)? <= self.pitch;
        if is_usable { self.pitch.checked_mul(self.height) } else { None }
    }

    fn columns(&self) -> usize {
        let columns = if self.cell == Cell::Text { self.width } else { self.width / GLYPH_WIDTH };
        columns.min(MAX_COLUMNS)
    }

    fn rows(&self) -> usize {
        let rows = if self.cell == Cell::Text { self.height } else { self.height / GLYPH_HEIGHT };
        rows.min(MAX_ROWS)
    }
}

/// Video memory.
pub trait Surface {
    /// Writes `bytes` from `offset` on. Both lie within what [`Geometry::size_bytes`] says.
    fn write(&mut self, offset: usize, bytes: &[u8]);
}

/// What the screen looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Light grey on black.
    Log,
    /// White on dark red: something is wrong and this is all there will be.
    Alarm,
}

impl Style {
    const fn ink(self) -> [u8; 3] {
        match self {
            Self::Log => [0xc0, 0xc0, 0xc0],
            Self::Alarm => [0xff, 0xff, 0xff],
        }
    }

    const fn paper(self) -> [u8; 3] {
        match self {
            Self::Log => [0, 0, 0],
            Self::Alarm => [0x60, 0, 0],
        }
    }

    const fn attribute(self) -> u8 {
        match self {
            Self::Log => 0x07,
            Self::Alarm => 0x4f,
        }
    }
}

/// A grid of characters and the video memory that shows it.
pub struct Screen<S> {
    shown: Option<(S, Geometry)>,
    style: Style,
    columns: usize,
    rows: usize,
    column: usize,
    row: usize,
    cells: [[u8; MAX_COLUMNS]; MAX_ROWS],
}

impl<S: Surface> Screen<S> {
    /// A grid of VGA's size that nothing shows yet.
    #[must_use]
    pub const fn blank() -> Self {
        let cells = [[b' '; MAX_COLUMNS]; MAX_ROWS];
        Self { shown: None, style: Style::Log, columns: 80, rows: 25, column: 0, row: 0, cells }
    }

    /// Shows the grid on `surface` from now on. `false`: it cannot be drawn to.
    pub fn attach(&mut self, surface: S, geometry: Geometry) -> bool {
        if geometry.size_bytes().is_none() {
            return false;
        }
        self.columns = geometry.columns();
        self.rows = geometry.rows();
        while self.row >= self.rows {
            self.move_up();
        }
        self.shown = Some((surface, geometry));
        self.redraw();
        true
    }

    /// Forgets the video memory; the grid goes on without being shown.
    pub fn detach(&mut self) -> Option<S> {
        self.shown.take().map(|(surface, _)| surface)
    }

    /// Starts anew on an empty screen.
    pub fn clear(&mut self, style: Style) {
        self.style = style;
        self.cells = [[b' '; MAX_COLUMNS]; MAX_ROWS];
        (self.column, self.row) = (0, 0);
        self.redraw();
    }

    /// Prints text: printable ASCII, line feeds, carriage returns, tabs.
    pub fn print(&mut self, text: &[u8]) {
        for &byte in text {
            match byte {
                b'\n' => self.next_row(),
                b'\r' => self.column = 0,
                b'\t' => {
                    for _ in 0..TAB - self.column % TAB {
                        self.put(b' ');
                    }
                }
                b' '..=b'~' => self.put(byte),
                _ => self.put(b'?'),
            }
        }
    }

    fn put(&mut self, character: u8) {
        if self.column >= self.columns {
            self.next_row();
        }
        if self.cells[self.row][self.column] != character {
            self.cells[self.row][self.column] = character;
            self.draw(self.row, self.column);
        }
        self.column += 1;
    }

    fn next_row(&mut self) {
        self.column = 0;
        self.row += 1;
        if self.row >= self.rows {
            self.move_up();
        }
    }

    /// Makes room in the lower half.
    fn move_up(&mut self) {
        let gone = (self.rows / 2).max(1);
        for row in 0..MAX_ROWS {
            for column in 0..MAX_COLUMNS {
                let moved = self.cells.get(row + gone).map_or(b' ', |below| below[column]);
                if self.cells[row][column] != moved {
                    self.cells[row][column] = moved;
                    self.draw(row, column);
                }
            }
        }
        self.row = self.row.saturating_sub(gone);
    }

    fn redraw(&mut self) {
        if let Some((surface, geometry)) = &mut self.shown
            && let Cell::Pixel { .. } = geometry.cell
        {
            // The margins, too.
            let paper = Pixels::new(geometry.cell, self.style).line(&[0; GLYPH_WIDTH]);
            let bytes = paper.bytes();
            for line in 0..geometry.height {
                let row_bytes = geometry.width * bytes.len() / GLYPH_WIDTH;
                for at in (0..row_bytes).step_by(bytes.len()) {
                    let len = bytes.len().min(row_bytes - at);
                    surface.write(line * geometry.pitch + at, &bytes[..len]);
                }
            }
        }
        for row in 0..self.rows {
            for column in 0..self.columns {
                let is_blank = self.cells[row][column] == b' ';
                if !is_blank || self.shown.as_ref().is_some_and(|(_, geometry)| geometry.cell == Cell::Text) {
                    self.draw(row, column);
                }
            }
        }
    }

    fn draw(&mut self, row: usize, column: usize) {
        let Some((surface, geometry)) = &mut self.shown else { return };
        if row >= self.rows || column >= self.columns {
            return;
        }
        let character = self.cells[row][column];
        match geometry.cell {
            Cell::Text => {
                surface.write(row * geometry.pitch + column * 2, &[character, self.style.attribute()]);
            }
            Cell::Pixel { bytes, .. } => {
                let pixels = Pixels::new(geometry.cell, self.style);
                let Some(glyph) = get_raster(char::from(character), FontWeight::Regular, HEIGHT) else { return };
                for (y, line) in glyph.rows().enumerate() {
                    let at = (row * GLYPH_HEIGHT + y) * geometry.pitch + column * GLYPH_WIDTH * bytes;
                    surface.write(at, pixels.line(line).bytes());
                }
            }
        }
    }
}

/// Turns the coverage of a glyph's pixels into video memory.
struct Pixels {
    bytes: usize,
    fields: [Field; 3],
    style: Style,
}

/// One line of a glyph as it stands in video memory.
struct Line {
    bytes: [u8; GLYPH_WIDTH * 4],
    len: usize,
}

impl Line {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Pixels {
    fn new(cell: Cell, style: Style) -> Self {
        match cell {
            Cell::Pixel { bytes, red, green, blue } => Self { bytes, fields: [red, green, blue], style },
            Cell::Text => Self { bytes: 0, fields: [Field { position: 0, size: 0 }; 3], style },
        }
    }

    fn line(&self, coverage: &[u8]) -> Line {
        let mut line = Line { bytes: [0; GLYPH_WIDTH * 4], len: 0 };
        for &coverage in coverage.iter().take(GLYPH_WIDTH) {
            let pixel = self.pixel(coverage).to_le_bytes();
            line.bytes[line.len..line.len + self.bytes].copy_from_slice(&pixel[..self.bytes]);
            line.len += self.bytes;
        }
        line
    }

    fn pixel(&self, coverage: u8) -> u32 {
        let mut pixel = 0;
        for ((ink, paper), field) in self.style.ink().into_iter().zip(self.style.paper()).zip(self.fields) {
            let mixed = (u32::from(ink) * u32::from(coverage) + u32::from(paper) * u32::from(255 - coverage)) / 255;
            pixel |= mixed >> (8 - field.size) << field.position;
        }
        pixel
    }
}

#[cfg(test)]
mod tests;
