// SPDX-License-Identifier: MIT OR Apache-2.0
//! The few instructions that the hypervisor has to read itself.
//!
//! Two questions are answered. *What does this MOV to or from emulated memory do?*
//! ([`MmioOp::decode`]): compilers reach device registers with plain moves, so those and the
//! extending loads are the list; anything else is refused, and the caller faults the guest. *How long
//! is this intercepted instruction?* ([`simple_length`]): some CPUs do not say where the next one
//! begins (SVM without NRIPS), and prefixes can make the textbook length wrong.
//!
//! The bytes come from guest memory and may have changed since the CPU executed them. So nothing
//! is assumed of them: an instruction that is not what the exit says is refused, and every length
//! is at most 15. A general decoder would be some ten thousand lines in ring 0 to do the same.
//!
//! RSP cannot be an operand: it is not among the registers that an exit saves, and no driver
//! moves it from a device.
//!
//! Sources: Intel SDM vol. 2A, Instruction Format; vol. 2D, Opcode Map.

use guest_abi::num::low_u8;

use crate::vcpu::regs::{GuestRegs, Segment};

/// The longest instruction in bytes.
pub const MAX_LENGTH: usize = 15;

/// The width of the code segment that an instruction is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, or a 16-bit segment.
    Bits16,
    /// A 32-bit segment.
    Bits32,
    /// A 64-bit segment in long mode.
    Bits64,
}

impl CodeSize {
    /// The width of the code in `cs`. `is_long_mode` is EFER.LMA.
    #[must_use]
    pub const fn of(cs: &Segment, is_long_mode: bool) -> Self {
        if is_long_mode && cs.is_long() {
            Self::Bits64
        } else if cs.is_big() {
            Self::Bits32
        } else {
            Self::Bits16
        }
    }
}

/// Bytes that are none of the instructions in question, or too few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotDecoded;

/// A general-purpose register, or a byte of one, as an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// The register's number, 0 (RAX) to 15; never 4 (RSP).
    pub register: u8,
    /// AH, CH, DH or BH of registers 0 to 3.
    pub is_high_byte: bool,
}

impl Operand {
    /// RAX or a part of it.
    pub(crate) const RAX: Self = Self { register: 0, is_high_byte: false };

    /// The register's value, shifted so that the operand begins at bit 0.
    #[must_use]
    pub fn get(self, regs: &GuestRegs) -> u64 {
        let mut copy = *regs;
        let value = copy.by_number(self.register).map_or(0, |r| *r);
        if self.is_high_byte { value >> 8 } else { value }
    }

    /// Writes `size` bytes: 1 and 2 leave the rest of the register, 4 clears the upper half.
    pub(crate) fn set(self, regs: &mut GuestRegs, size: u8, value: u64) {
        let Some(r) = regs.by_number(self.register) else { return };
        *r = match size {
            1 if self.is_high_byte => *r & !0xff00 | (value & 0xff) << 8,
            1 => *r & !0xff | value & 0xff,
            2 => *r & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }
}

/// How a load fills a register that is wider than the memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// With zeroes.
    Zero,
    /// With the sign.
    Sign,
}

/// What is moved, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Memory to a register.
    Load {
        /// The register.
        into: Operand,
        /// Bytes of the register that are written: 1, 2, 4 or 8, at least the memory operand's.
        width: u8,
        /// How the bytes beyond the memory operand are filled.
        extension: Extension,
    },
    /// A register to memory.
    StoreRegister(Operand),
    /// A constant to memory, sign-extended where the operand is wider.
    StoreImmediate(u64),
}

/// A decoded move to or from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioOp {
    /// What is moved.
    pub what: Move,
    /// Bytes of memory: 1, 2, 4 or 8.
    pub size: u8,
    /// Bytes of the instruction.
    pub length: u8,
}

impl MmioOp {
    /// Decodes the instruction at the start of `bytes`.
    ///
    /// # Errors
    /// [`NotDecoded`] if it is not a move between memory and a register or constant.
    pub fn decode(bytes: &[u8], code: CodeSize) -> Result<Self, NotDecoded> {
        let mut reader = Reader::new(bytes);
        let (prefixes, opcode) = reader.prefixes(code)?;
        if prefixes.has_lock_or_repeat {
            return Err(NotDecoded);
        }
        let wide = prefixes.operand_bytes(code);
        let (what, size) = match opcode {
            0x88..=0x8b => {
                let size = if opcode & 1 == 0 { 1 } else { wide };
                let operand = reader.memory_and_register(&prefixes, code, size)?;
                let load = Move::Load { into: operand, width: size, extension: Extension::Zero };
                (if opcode & 2 != 0 { load } else { Move::StoreRegister(operand) }, size)
            }
            0xa0..=0xa3 => {
                let size = if opcode & 1 == 0 { 1 } else { wide };
                reader.skip(prefixes.address_bytes(code))?;
                let load = Move::Load { into: Operand::RAX, width: size, extension: Extension::Zero };
                (if opcode & 2 == 0 { load } else { Move::StoreRegister(Operand::RAX) }, size)
            }
            0xc6 | 0xc7 => {
                let size = if opcode == 0xc6 { 1 } else { wide };
                if reader.memory(&prefixes, code)? != 0 {
                    return Err(NotDecoded);
                }
                (Move::StoreImmediate(reader.immediate(size)?), size)
            }
            0x0f => {
                let second = reader.byte()?;
                let extension = match second {
                    0xb6 | 0xb7 => Extension::Zero,
                    0xbe | 0xbf => Extension::Sign,
                    _ => return Err(NotDecoded),
                };
                let size = if second & 1 == 0 { 1 } else { 2 };
                let into = reader.memory_and_register(&prefixes, code, wide)?;
                (Move::Load { into, width: wide, extension }, size)
            }
            _ => return Err(NotDecoded),
        };
        Ok(Self { what, size, length: reader.length() })
    }

    /// The value that a store writes, cut to [`MmioOp::size`] bytes; `None` for a load.
    #[must_use]
    pub fn stored(&self, regs: &GuestRegs) -> Option<u64> {
        let value = match self.what {
            Move::Load { .. } => return None,
            Move::StoreRegister(operand) => operand.get(regs),
            Move::StoreImmediate(value) => value,
        };
        Some(cut(value, self.size))
    }

    /// Finishes a load with what memory held; no effect for a store.
    pub fn complete_load(&self, regs: &mut GuestRegs, value: u64) {
        let Move::Load { into, width, extension } = self.what else { return };
        let value = match extension {
            Extension::Zero => cut(value, self.size),
            Extension::Sign => sign_extend(value, self.size),
        };
        into.set(regs, width, value);
    }
}

/// The low `size` bytes, of 1, 2, 4 or 8.
const fn cut(value: u64, size: u8) -> u64 {
    value & u64::MAX >> (64 - 8 * size)
}

/// The low `size` bytes, of 1, 2, 4 or 8, as a signed number.
const fn sign_extend(value: u64, size: u8) -> u64 {
    let unused = 64 - 8 * size;
    ((value << unused).cast_signed() >> unused).cast_unsigned()
}

/// An intercepted instruction whose operands are registers or in the exit information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the CPU's own")]
pub enum Simple {
    Cpuid,
    Hlt,
    Rdmsr,
    Wrmsr,
    Xsetbv,
    /// WBINVD and WBNOINVD.
    Wbinvd,
    Invd,
    /// IN, OUT, INS and OUTS.
    Io,
}

/// The length in bytes of the instruction at the start of `bytes`, prefixes included.
///
/// # Errors
/// [`NotDecoded`] if it is not what `kind` says.
pub fn simple_length(bytes: &[u8], kind: Simple, code: CodeSize) -> Result<u8, NotDecoded> {
    let mut reader = Reader::new(bytes);
    let (_, opcode) = reader.prefixes(code)?;
    let expected: &[u8] = match kind {
        Simple::Cpuid => &[0xa2],
        Simple::Rdmsr => &[0x32],
        Simple::Wrmsr => &[0x30],
        Simple::Wbinvd => &[0x09],
        Simple::Invd => &[0x08],
        Simple::Xsetbv => &[0x01, 0xd1],
        Simple::Hlt if opcode == 0xf4 => return Ok(reader.length()),
        Simple::Io => {
            match opcode {
                0xe4..=0xe7 => reader.skip(1)?,
                0x6c..=0x6f | 0xec..=0xef => {}
                _ => return Err(NotDecoded),
            }
            return Ok(reader.length());
        }
        Simple::Hlt => return Err(NotDecoded),
    };
    if opcode != 0x0f {
        return Err(NotDecoded);
    }
    for byte in expected {
        if reader.byte()? != *byte {
            return Err(NotDecoded);
        }
    }
    Ok(reader.length())
}

/// A move between a control register and a general-purpose register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlMove {
    /// The control register's number.
    pub control: u8,
    /// The general-purpose register's number; 4 is RSP.
    pub register: u8,
    /// The control register is written.
    pub is_write: bool,
    /// Bytes of the instruction.
    pub length: u8,
}

impl ControlMove {
    /// Decodes MOV to or from a control register, for CPUs without decode assists.
    ///
    /// # Errors
    /// [`NotDecoded`] if it is something else.
    pub fn decode(bytes: &[u8], code: CodeSize) -> Result<Self, NotDecoded> {
        let mut reader = Reader::new(bytes);
        let (prefixes, opcode) = reader.prefixes(code)?;
        let second = reader.byte()?;
        if opcode != 0x0f || !matches!(second, 0x20 | 0x22) {
            return Err(NotDecoded);
        }
        // The mode field is ignored: the operand is always a register.
        let modrm = reader.byte()?;
        Ok(Self {
            control: modrm >> 3 & 7 | prefixes.rex_r(),
            register: modrm & 7 | prefixes.rex_b(),
            is_write: second == 0x22,
            length: reader.length(),
        })
    }
}

/// What the bytes before an opcode said.
#[derive(Clone, Copy, Default)]
struct Prefixes {
    has_operand_size: bool,
    has_address_size: bool,
    has_lock_or_repeat: bool,
    /// The REX prefix, or 0; one is never 0.
    rex: u8,
}

impl Prefixes {
    const fn rex_r(&self) -> u8 {
        (self.rex & 4) << 1
    }

    const fn rex_b(&self) -> u8 {
        (self.rex & 1) << 3
    }

    const fn operand_bytes(&self, code: CodeSize) -> u8 {
        match (code, self.has_operand_size) {
            (CodeSize::Bits64, _) if self.rex & 8 != 0 => 8,
            (CodeSize::Bits16, true) | (CodeSize::Bits32 | CodeSize::Bits64, false) => 4,
            (CodeSize::Bits16, false) | (CodeSize::Bits32 | CodeSize::Bits64, true) => 2,
        }
    }

    const fn address_bytes(&self, code: CodeSize) -> usize {
        match (code, self.has_address_size) {
            (CodeSize::Bits64, false) => 8,
            (CodeSize::Bits64, true) | (CodeSize::Bits32, false) | (CodeSize::Bits16, true) => 4,
            (CodeSize::Bits32, true) | (CodeSize::Bits16, false) => 2,
        }
    }
}

/// Takes an instruction apart from its start, never past 15 bytes.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.get(..MAX_LENGTH).unwrap_or(bytes), at: 0 }
    }

    fn length(&self) -> u8 {
        low_u8(self.at as u64)
    }

    fn byte(&mut self) -> Result<u8, NotDecoded> {
        let byte = self.bytes.get(self.at).copied().ok_or(NotDecoded)?;
        self.at += 1;
        Ok(byte)
    }

    fn skip(&mut self, count: usize) -> Result<(), NotDecoded> {
        for _ in 0..count {
            self.byte()?;
        }
        Ok(())
    }

    /// Reads the prefixes and the first opcode byte.
    fn prefixes(&mut self, code: CodeSize) -> Result<(Prefixes, u8), NotDecoded> {
        let mut prefixes = Prefixes::default();
        loop {
            let byte = self.byte()?;
            match byte {
                0x66 => prefixes.has_operand_size = true,
                0x67 => prefixes.has_address_size = true,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
                0xf0 | 0xf2 | 0xf3 => prefixes.has_lock_or_repeat = true,
                0x40..=0x4f if code == CodeSize::Bits64 => {
                    prefixes.rex = byte;
                    continue;
                }
                _ => return Ok((prefixes, byte)),
            }
            // A REX prefix counts only directly before the opcode.
            prefixes.rex = 0;
        }
    }

    /// Reads ModRM with a memory operand; returns the register field without REX.R.
    fn memory(&mut self, prefixes: &Prefixes, code: CodeSize) -> Result<u8, NotDecoded> {
        let modrm = self.byte()?;
        let (mode, base) = (modrm >> 6, modrm & 7);
        let displacement = if prefixes.address_bytes(code) == 2 {
            match mode {
                0 if base == 6 => 2,
                0 => 0,
                1 => 1,
                2 => 2,
                _ => return Err(NotDecoded),
            }
        } else {
            let base = if mode != 3 && base == 4 { self.byte()? & 7 } else { base };
            match mode {
                0 if base == 5 => 4,
                0 => 0,
                1 => 1,
                2 => 4,
                _ => return Err(NotDecoded),
            }
        };
        self.skip(displacement)?;
        Ok(modrm >> 3 & 7)
    }

    /// Reads ModRM with a memory operand and a register operand of `size` bytes.
    fn memory_and_register(&mut self, prefixes: &Prefixes, code: CodeSize, size: u8) -> Result<Operand, NotDecoded> {
        let field = self.memory(prefixes, code)?;
        if size == 1 && prefixes.rex == 0 && field >= 4 {
            return Ok(Operand { register: field - 4, is_high_byte: true });
        }
        match field | prefixes.rex_r() {
            4 => Err(NotDecoded),
            register => Ok(Operand { register, is_high_byte: false }),
        }
    }

    /// Reads a constant of up to 4 bytes and sign-extends it.
    fn immediate(&mut self, size: u8) -> Result<u64, NotDecoded> {
        let bytes = size.min(4);
        let mut value = 0;
        for i in 0..bytes {
            value |= u64::from(self.byte()?) << (8 * i);
        }
        Ok(sign_extend(value, bytes))
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
