// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of [`super`] against a full decoder, over random bytes.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use proptest::prelude::*;

use super::*;

const SIZES: [(CodeSize, u32); 3] = [(CodeSize::Bits16, 16), (CodeSize::Bits32, 32), (CodeSize::Bits64, 64)];

fn reference(bytes: &[u8], bits: u32) -> Instruction {
    let bytes = &bytes[..bytes.len().min(MAX_LENGTH)];
    Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE).decode()
}

/// Whether the full decoder finds a move that ours has to know.
fn is_ours(full: &Instruction) -> bool {
    let is_move = match full.mnemonic() {
        Mnemonic::Mov => true,
        Mnemonic::Movzx | Mnemonic::Movsx => full.code() != Code::INVALID,
        _ => false,
    };
    let operands = [full.op0_kind(), full.op1_kind()];
    let general = |i: u32| {
        full.op_kind(i) != OpKind::Register
            || full.op_register(i).is_gpr() && full.op_register(i).full_register() != Register::RSP
    };
    is_move
        && operands.contains(&OpKind::Memory)
        && general(0)
        && general(1)
        && !full.has_lock_prefix()
        && !full.has_rep_prefix()
        && !full.has_repne_prefix()
        && !full.has_xacquire_prefix()
        && !full.has_xrelease_prefix()
}

fn number(register: Register) -> (u8, bool) {
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    (u8::try_from(register.full_register().number()).unwrap(), high)
}

fn compare(bytes: &[u8], code: CodeSize, bits: u32) {
    let full = reference(bytes, bits);
    let repeats = Reader::new(bytes).prefixes(code).is_ok_and(|(p, _)| p.has_lock_or_repeat);
    match MmioOp::decode(bytes, code) {
        Err(NotDecoded) => assert!(repeats || !is_ours(&full), "{bits}: {bytes:02x?} is {full:?}"),
        Ok(op) => {
            assert!(is_ours(&full), "{bits}: {bytes:02x?} is {full:?}, not {op:?}");
            assert_eq!(usize::from(op.length), full.len(), "{bits}: {bytes:02x?} {full:?}");
            assert_eq!(usize::from(op.size), full.memory_size().size(), "{bits}: {bytes:02x?} {full:?}");
            assert_eq!(!matches!(op.what, Move::Load { .. }), full.op0_kind() == OpKind::Memory);
            match op.what {
                Move::Load { into, width, extension } => {
                    assert_eq!((into.register, into.is_high_byte), number(full.op0_register()), "{bytes:02x?}");
                    assert_eq!(usize::from(width), full.op0_register().size());
                    assert_eq!(extension == Extension::Sign, full.mnemonic() == Mnemonic::Movsx);
                }
                Move::StoreRegister(from) => {
                    assert_eq!((from.register, from.is_high_byte), number(full.op1_register()), "{bytes:02x?}");
                }
                Move::StoreImmediate(value) => {
                    assert_eq!(cut(value, op.size), cut(full.immediate(1), op.size), "{bytes:02x?} {full:?}");
                }
            }
        }
    }
}

fn compare_simple(bytes: &[u8], code: CodeSize, bits: u32) {
    let kinds: [(Simple, &[Mnemonic]); 8] = [
        (Simple::Cpuid, &[Mnemonic::Cpuid]),
        (Simple::Hlt, &[Mnemonic::Hlt]),
        (Simple::Rdmsr, &[Mnemonic::Rdmsr]),
        (Simple::Wrmsr, &[Mnemonic::Wrmsr]),
        (Simple::Xsetbv, &[Mnemonic::Xsetbv]),
        (Simple::Wbinvd, &[Mnemonic::Wbinvd, Mnemonic::Wbnoinvd]),
        (Simple::Invd, &[Mnemonic::Invd]),
        (
            Simple::Io,
            &[
                Mnemonic::In,
                Mnemonic::Out,
                Mnemonic::Insb,
                Mnemonic::Insw,
                Mnemonic::Insd,
                Mnemonic::Outsb,
                Mnemonic::Outsw,
                Mnemonic::Outsd,
            ],
        ),
    ];
    let full = reference(bytes, bits);
    for (kind, mnemonics) in kinds {
        if mnemonics.contains(&full.mnemonic()) {
            assert_eq!(simple_length(bytes, kind, code).map(usize::from), Ok(full.len()), "{bits}: {bytes:02x?}");
        }
    }
    if matches!(full.code(), Code::Mov_cr_r64 | Code::Mov_cr_r32 | Code::Mov_r64_cr | Code::Mov_r32_cr) {
        let ours = ControlMove::decode(bytes, code).unwrap();
        assert_eq!(usize::from(ours.length), full.len(), "{bits}: {bytes:02x?}");
        let (control, register) = if ours.is_write { (0, 1) } else { (1, 0) };
        assert_eq!(number(full.op_register(register)).0, ours.register);
        if !full.has_lock_prefix() && full.op_register(control) <= Register::CR7 {
            assert_eq!(full.op_register(control).number(), usize::from(ours.control), "{bytes:02x?}");
        }
    }
}

/// Prefixes, an opcode that matters, then anything.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop::sample::select(vec![0x66, 0x67, 0x2e, 0x64, 0x40, 0x41, 0x44, 0x48, 0x4c, 0x4f, 0xf2, 0xf3]);
    let opcodes: Vec<&[u8]> = vec![
        &[0x88],
        &[0x89],
        &[0x8a],
        &[0x8b],
        &[0xa0],
        &[0xa1],
        &[0xa2],
        &[0xa3],
        &[0xc6],
        &[0xc7],
        &[0xc6, 0],
        &[0xc7, 0],
        &[0x0f, 0xb6],
        &[0x0f, 0xb7],
        &[0x0f, 0xbe],
        &[0x0f, 0xbf],
        &[0x0f, 0x20],
        &[0x0f, 0x22],
        &[0x0f, 0x30],
        &[0x0f, 0x32],
        &[0x0f, 0xa2],
        &[0x0f, 0x01],
        &[0x0f, 0x09],
        &[0x0f, 0x08],
        &[0x0f, 0x06],
        &[0x0f, 1, 0xd1],
        &[0x0f, 1, 0xd9],
        &[0x0f, 1, 0xc1],
        &[0x0f, 1, 0xf9],
        &[0x0f, 0x31],
        &[0x0f, 0x33],
        &[0xf4],
        &[0x90],
        &[0xe4],
        &[0xe5],
        &[0xe6],
        &[0xe7],
        &[0xec],
        &[0xed],
        &[0xee],
        &[0xef],
        &[0x6c],
        &[0x6f],
    ];
    let tail = prop::collection::vec(any::<u8>(), 0..16);
    (prop::collection::vec(prefix, 0..5), prop::sample::select(opcodes), tail)
        .prop_map(|(prefixes, opcode, tail)| [&prefixes, opcode, &tail].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn likely_instructions_decode_as_the_full_decoder_does(bytes in likely()) {
        for (code, bits) in SIZES {
            compare(&bytes, code, bits);
            compare_simple(&bytes, code, bits);
        }
    }

    #[test]
    fn random_bytes_decode_as_the_full_decoder_does(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
        for (code, bits) in SIZES {
            compare(&bytes, code, bits);
            compare_simple(&bytes, code, bits);
        }
    }
}

fn op(bytes: &[u8]) -> MmioOp {
    MmioOp::decode(bytes, CodeSize::Bits64).unwrap()
}

#[test]
fn stores_take_the_right_part_of_the_register() {
    let regs = GuestRegs { rax: 0x1122_3344_5566_7788, r9: 0xa0a1_a2a3_a4a5_a6a7, ..GuestRegs::default() };
    let cases: [(&[u8], u64); 6] = [
        (&[0x88, 0x07], 0x88),
        (&[0x88, 0x27], 0x77),
        (&[0x66, 0x89, 0x07], 0x7788),
        (&[0x89, 0x07], 0x5566_7788),
        (&[0x4c, 0x89, 0x0f], 0xa0a1_a2a3_a4a5_a6a7),
        (&[0x48, 0xc7, 0x07, 0xff, 0xff, 0xff, 0xff], u64::MAX),
    ];
    for (bytes, value) in cases {
        assert_eq!(op(bytes).stored(&regs), Some(value), "{bytes:02x?}");
    }
    assert_eq!(op(&[0x8b, 0x07]).stored(&regs), None);
}

#[test]
fn loads_write_the_right_part_of_the_register() {
    let cases: [(&[u8], u64); 7] = [
        (&[0x8a, 0x07], 0x1122_3344_5566_7780),
        (&[0x8a, 0x27], 0x1122_3344_5566_8088),
        (&[0x66, 0x8b, 0x07], 0x1122_3344_5566_ff80),
        (&[0x8b, 0x07], 0xaabb_ff80),
        (&[0x0f, 0xb7, 0x07], 0xff80),
        (&[0x48, 0x0f, 0xbe, 0x07], 0xffff_ffff_ffff_ff80),
        (&[0x0f, 0xbf, 0x07], 0xffff_ff80),
    ];
    for (bytes, value) in cases {
        let mut regs = GuestRegs { rax: 0x1122_3344_5566_7788, ..GuestRegs::default() };
        op(bytes).complete_load(&mut regs, 0x0102_0304_aabb_ff80);
        assert_eq!(regs.rax, value, "{bytes:02x?}");
    }
    let mut regs = GuestRegs::default();
    op(&[0x89, 0x07]).complete_load(&mut regs, 5);
    assert_eq!(regs, GuestRegs::default());
}

#[test]
fn too_long_and_too_short_instructions_are_refused() {
    let mut bytes = vec![0x66; 13];
    bytes.extend([0x89, 0x07]);
    assert_eq!(op(&bytes).length, 15);
    bytes.insert(0, 0x66);
    assert_eq!(MmioOp::decode(&bytes, CodeSize::Bits64), Err(NotDecoded));
    assert_eq!(simple_length(&[0x66; 20], Simple::Hlt, CodeSize::Bits64), Err(NotDecoded));
    assert_eq!(MmioOp::decode(&[0xc7, 0x07, 1, 2, 3], CodeSize::Bits64), Err(NotDecoded));
    assert_eq!(MmioOp::decode(&[], CodeSize::Bits32), Err(NotDecoded));
    assert_eq!(simple_length(&[0x0f], Simple::Cpuid, CodeSize::Bits64), Err(NotDecoded));
}

#[test]
fn what_the_exit_did_not_say_is_refused() {
    assert_eq!(simple_length(&[0x0f, 0xa2], Simple::Rdmsr, CodeSize::Bits64), Err(NotDecoded));
    assert_eq!(simple_length(&[0xf4], Simple::Io, CodeSize::Bits64), Err(NotDecoded));
    assert_eq!(ControlMove::decode(&[0x0f, 0x21, 0xc0], CodeSize::Bits64), Err(NotDecoded));
    let to_cr4 = ControlMove { control: 4, register: 9, is_write: true, length: 4 };
    assert_eq!(ControlMove::decode(&[0x41, 0x0f, 0x22, 0xe1], CodeSize::Bits64), Ok(to_cr4));
}

#[test]
fn the_width_of_code_comes_from_cs() {
    let cs = |attributes| Segment { attributes, ..Segment::default() };
    assert_eq!(CodeSize::of(&cs(1 << 13), true), CodeSize::Bits64);
    assert_eq!(CodeSize::of(&cs(1 << 13), false), CodeSize::Bits16);
    assert_eq!(CodeSize::of(&cs(1 << 14), true), CodeSize::Bits32);
    assert_eq!(CodeSize::of(&cs(0), false), CodeSize::Bits16);
}
