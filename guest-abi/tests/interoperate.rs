// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our halves of a ring against the macros of the public headers, in C.
//!
//! A small program makes a front or a back with the macros of `ring.h` and talks over a file that both map; it does
//! one step for each line of input and answers with a line.
//!
//! Without the headers or a C compiler nothing can be compared: the test says so and passes.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use guest_abi::GrantRef;
use guest_abi::io::blkif::{BLKIF_RSP_OKAY, Blkif, Direction, Operation, Part, Request, transfer_request};
use guest_abi::ring::{Back, Front};

const PROGRAM: &str = r#"
#define __XEN_TOOLS__ 1
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()
#include <xen/xen.h>
#include <xen/io/blkif.h>
static union { blkif_sring_t ring; unsigned char bytes[4096]; } page;
static blkif_front_ring_t front;
static blkif_back_ring_t back;
static void out(int notify, unsigned long long id) {
    printf("%d %llu\n", notify, id);
    fwrite(page.bytes, 1, 4096, stdout);
    fflush(stdout);
}
int main(void) {
    char op;
    while (fread(&op, 1, 1, stdin) == 1 && fread(page.bytes, 1, 4096, stdin) == 4096) {
        int notify = 0, more = 0;
        unsigned long long id = 0;
        if (op == 'f') {
            SHARED_RING_INIT(&page.ring);
            FRONT_RING_INIT(&front, &page.ring, 4096);
        } else if (op == 'b') {
            BACK_RING_INIT(&back, &page.ring, 4096);
        } else if (op == 'R') {
            blkif_request_t *r = RING_GET_REQUEST(&front, front.req_prod_pvt);
            memset(r, 0, sizeof *r);
            r->operation = BLKIF_OP_WRITE; r->nr_segments = 1; r->id = 1000 + front.req_prod_pvt;
            r->sector_number = 24; r->seg[0].gref = 77; r->seg[0].first_sect = 2; r->seg[0].last_sect = 5;
            front.req_prod_pvt++;
            RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&front, notify);
        } else if (op == 'r') {
            RING_FINAL_CHECK_FOR_RESPONSES(&front, more);
            if (more) { id = RING_GET_RESPONSE(&front, front.rsp_cons)->id; front.rsp_cons++; }
        } else if (op == 'q') {
            RING_FINAL_CHECK_FOR_REQUESTS(&back, more);
            if (more) { id = RING_GET_REQUEST(&back, back.req_cons)->id; back.req_cons++; }
        } else if (op == 'A') {
            blkif_response_t *r = RING_GET_RESPONSE(&back, back.rsp_prod_pvt);
            r->id = 2000 + back.rsp_prod_pvt; r->operation = 0; r->status = 0;
            back.rsp_prod_pvt++;
            RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&back, notify);
        }
        out(notify, id);
    }
    return 0;
}
"#;

struct Peer {
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    words: Vec<AtomicU32>,
}

impl Peer {
    fn start() -> Option<Self> {
        if !Path::new("/usr/include/xen/xen.h").exists() || Command::new("cc").arg("--version").output().is_err() {
            eprintln!("skipped: needs a C compiler and the headers of libxen-dev");
            return None;
        }
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // Both tests may run at the same time.
        let name = format!("interoperate-{:?}", std::thread::current().id()).replace(['(', ')'], "");
        let (source, binary) = (dir.join(format!("{name}.c")), dir.join(name));
        std::fs::write(&source, PROGRAM).expect("the target directory is writable");
        let cc = Command::new("cc").arg("-o").arg(&binary).arg(&source).output().expect("the compiler starts");
        assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
        let mut child =
            Command::new(&binary).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let words = (0..1024).map(|_| AtomicU32::new(0)).collect();
        Some(Self { _child: child, input, output: BufReader::new(output), words })
    }

    /// Lets the peer do one step on the page; whether it would send an event, and the id that it got.
    fn step(input: &mut ChildStdin, output: &mut BufReader<ChildStdout>, words: &[AtomicU32], op: u8) -> (bool, u64) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Ordering::SeqCst).to_le_bytes()).collect();
        input.write_all(&[op]).expect("the peer reads");
        input.write_all(&bytes).expect("the peer reads");
        input.flush().expect("the peer reads");
        let mut line = String::new();
        output.read_line(&mut line).expect("the peer answers");
        let mut page = [0; 4096];
        output.read_exact(&mut page).expect("the peer answers");
        for (word, raw) in words.iter().zip(page.chunks(4)) {
            word.store(u32::from_le_bytes(raw.try_into().expect("four bytes")), Ordering::SeqCst);
        }
        let (notify, id) = line.trim().split_once(' ').expect("two numbers");
        (notify == "1", id.parse().expect("a number"))
    }
}

#[test]
fn our_back_serves_their_front() {
    let Some(Peer { mut input, mut output, words, .. }) = Peer::start() else { return };
    let mut peer = |op| Peer::step(&mut input, &mut output, &words, op);
    peer(b'f');
    let mut back = Back::<Blkif, _>::attach(&words[..]).expect("their ring is a ring");
    // More than once around.
    for round in 0..50 {
        let (notified, _) = peer(b'R');
        assert!(notified, "we asked for every one");
        let slot = back.pop().expect("no lie").expect("there is a request");
        let request = Request::parse(&slot, 0);
        assert_eq!(request.id, 1000 + round);
        let Ok(Operation::Transfer { direction: Direction::Write, sector: 24, parts }) = request.wants else {
            panic!("{request:?}")
        };
        let part = parts.as_slice()[0];
        assert_eq!((part.gref, part.offset(), part.len_bytes()), (GrantRef::new(77), 1024, 2048));
        assert_eq!(back.arm(), Ok(false));
        back.push(&request.response(BLKIF_RSP_OKAY)).expect("there is room");
        assert!(back.publish().is_needed(), "they asked for every one");
        assert_eq!(peer(b'r').1, 1000 + round);
        assert_eq!(peer(b'r').1, 0, "that was all");
    }
}

#[test]
fn our_front_is_served_by_their_back() {
    let Some(Peer { mut input, mut output, words, .. }) = Peer::start() else { return };
    let mut front = Front::<Blkif, _>::new(&words[..]).expect("a page is large enough");
    let mut peer = |op| Peer::step(&mut input, &mut output, &words, op);
    peer(b'b');
    for round in 0..50 {
        assert_eq!(peer(b'q').1, 0, "nothing yet");
        let part = [Part::whole(GrantRef::new(1))];
        front.push(&transfer_request(500 + round, Direction::Read, 0, round, &part)).expect("there is room");
        assert!(front.publish().is_needed(), "they asked for every one");
        assert_eq!(peer(b'q').1, 500 + round);
        assert_eq!(front.arm(), Ok(false));
        assert!(peer(b'A').0, "we asked for every one");
        let response = front.pop().expect("no lie").expect("there is a response");
        assert_eq!(response.id, 2000 + round);
    }
}
