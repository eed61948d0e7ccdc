// SPDX-License-Identifier: MIT OR Apache-2.0
//! Many requests to a disk at the same time, by Linux' calls for asynchronous I/O.
//!
//! Source: Linux `include/uapi/linux/aio_abi.h` at 6.1.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use super::Mapping;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `IOCB_CMD_PREAD`.
    Read = 0,
    /// `IOCB_CMD_PWRITE`.
    Write = 1,
}

/// `struct iocb`.
#[repr(C)]
#[derive(Default)]
struct Control {
    data: u64,
    key: u32,
    flags: u32,
    operation: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: u64,
    reserved: [u64; 2],
}
const _: () = assert!(size_of::<Control>() == 64);

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Default)]
struct Event {
    data: u64,
    control: u64,
    result: i64,
    result2: i64,
}
const _: () = assert!(size_of::<Event>() == 32);

/// A queue of requests of the same length, each with a buffer of its own.
#[derive(Debug)]
pub struct Queue {
    context: u64,
    depth: usize,
    length: usize,
    buffers: Mapping,
}

impl Queue {
    /// Makes a queue for `depth` requests of `length` bytes each, with buffers in memory.
    ///
    /// # Errors
    /// There is no memory, or the kernel has no such calls.
    pub fn new(depth: usize, length: usize) -> io::Result<Self> {
        let bytes = depth.checked_mul(length).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| io::Error::other("a queue without requests or bytes"))?;
        let buffers = Mapping::anonymous(bytes)?;
        let mut context = 0_u64;
        // SAFETY: the call writes one word, to `context`.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
        checked(result)?;
        Ok(Self { context, depth, length, buffers })
    }

    /// Begins requests, each of a slot below the depth that has none under way, at an offset of the file.
    ///
    /// # Errors
    /// The kernel refuses one of them.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn submit(&mut self, file: &File, direction: Direction, requests: &[(usize, u64)]) -> io::Result<()> {
        let control = |&(slot, offset): &(usize, u64)| {
            assert!(slot < self.depth, "slot {slot} of {}", self.depth);
            Control {
                data: slot as u64,
                operation: direction as u16,
                file: u32::try_from(file.as_raw_fd()).unwrap_or(u32::MAX),
                buffer: self.buffers.address() + (slot * self.length) as u64,
                length: self.length as u64,
                offset,
                ..Control::default()
            }
        };
        let mut controls: Vec<Control> = requests.iter().map(control).collect();
        let pointers: Vec<*mut Control> = controls.iter_mut().map(ptr::from_mut).collect();
        // SAFETY: (1) the pointers are to structures that live until the call ends, after which the kernel needs them no
        // more; (2) each names bytes of `buffers`, which stay mapped until `drop` has waited for the request, and which
        // nothing here reads or writes meanwhile.
        let result = unsafe { libc::syscall(libc::SYS_io_submit, self.context, pointers.len(), pointers.as_ptr()) };
        match checked(result)? {
            all if all == pointers.len() => Ok(()),
            some => Err(io::Error::other(format!("only {some} of {} requests were taken", pointers.len()))),
        }
    }

    /// Waits until at least one request is done; returns the slots of all that are.
    ///
    /// # Errors
    /// One of them has failed, or has not moved all bytes.
    pub fn wait(&mut self) -> io::Result<Vec<usize>> {
        let mut events = vec![Event::default(); self.depth];
        let no_limit = ptr::null_mut::<libc::timespec>();
        // SAFETY: the call writes at most as many events as there is room for.
        let result = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, 1, events.len(), events.as_mut_ptr(), no_limit)
        };
        events.truncate(checked(result)?);
        let done = |event: &Event| match (usize::try_from(event.result), usize::try_from(event.data)) {
            (Ok(bytes), Ok(slot)) if bytes == self.length => Ok(slot),
            (Ok(bytes), _) => Err(io::Error::other(format!("{bytes} of {} bytes were moved", self.length))),
            _ => Err(io::Error::from_raw_os_error(i32::try_from(-event.result).unwrap_or(libc::EIO))),
        };
        events.iter().map(done).collect()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the context is this queue's; the call waits for what is under way, after which nobody uses the buffers.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

/// The result of a system call.
fn checked(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_requests_are_done_once_and_errors_are_told() {
        let file = std::env::temp_dir().join(format!("isthmus-aio-{}", std::process::id()));
        std::fs::write(&file, vec![7; 4 * 4096]).unwrap();
        let open = File::open(&file).unwrap();
        let mut queue = Queue::new(4, 4096).unwrap();
        queue.submit(&open, Direction::Read, &[(0, 0), (1, 4096), (2, 8192), (3, 12288)]).unwrap();
        let mut done = Vec::new();
        while done.len() < 4 {
            done.extend(queue.wait().unwrap());
        }
        done.sort_unstable();
        assert_eq!(done, [0, 1, 2, 3]);
        let mut byte = [0];
        queue.buffers.read(3 * 4096 + 4095, &mut byte);
        assert_eq!(byte, [7]);
        // Behind the file's end.
        queue.submit(&open, Direction::Read, &[(0, 1 << 20)]).unwrap();
        assert!(queue.wait().unwrap_err().to_string().contains("0 of 4096 bytes"));
        // The file is not open to be written.
        assert!(queue.submit(&open, Direction::Write, &[(0, 0)]).is_err());
        assert!(Queue::new(0, 4096).is_err());
        std::fs::remove_file(file).unwrap();
    }
}
