// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nodes, as all see them or as a transaction does.

use guest_abi::io::xs_wire;

use super::{Client, Error, refused, text};
use crate::xenstore::wire::{Code, Fields, strings};

/// A view of the store: all of it, or a transaction's.
#[derive(Debug)]
pub struct View<'a> {
    pub(super) client: &'a mut Client,
    pub(super) transaction: u32,
}

impl View<'_> {
    fn request(&mut self, operation: &'static str, path: &str, kind: u32, payload: &[u8]) -> Result<Vec<u8>, Error> {
        self.client.request(operation, path, kind, self.transaction, payload)
    }

    /// A node's value.
    ///
    /// # Errors
    /// ENOENT, EACCES.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        self.request("reading", path, xs_wire::XS_READ, &strings([path]))
    }

    /// A node's value as text; `None` if there is no such node.
    ///
    /// # Errors
    /// EACCES.
    pub fn read_text(&mut self, path: &str) -> Result<Option<String>, Error> {
        match self.read(path) {
            Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            Err(error) if error.code() == Some(Code::Enoent) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names of a node's children, sorted.
    ///
    /// # Errors
    /// ENOENT, EACCES.
    pub fn list(&mut self, path: &str) -> Result<Vec<String>, Error> {
        let names = match self.request("listing", path, xs_wire::XS_DIRECTORY, &strings([path])) {
            Err(error) if error.code() == Some(Code::E2big) => self.list_in_parts(path)?,
            other => other?,
        };
        Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(text).collect())
    }

    /// A list that no message holds. It is begun anew if it changes meanwhile.
    fn list_in_parts(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        let (mut names, mut stamp) = (Vec::new(), Vec::new());
        loop {
            let offset = names.len().to_string();
            let kind = xs_wire::XS_DIRECTORY_PART;
            let part = self.request("listing", path, kind, &strings([path, &offset]))?;
            let mut fields = Fields::new(&part);
            let seen = fields.string().map_err(|code| refused("listing", path, code))?.to_vec();
            if !names.is_empty() && seen != stamp {
                names.clear();
                continue;
            }
            stamp = seen;
            names.extend_from_slice(fields.rest());
            // An empty name is the end.
            if names.ends_with(b"\0\0") || names == b"\0" {
                return Ok(names);
            }
        }
    }

    /// Sets a node's value; makes it where it is missing.
    ///
    /// # Errors
    /// EACCES, ENOSPC.
    pub fn write(&mut self, path: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        let mut payload = strings([path]);
        payload.extend_from_slice(value.as_ref());
        self.request("writing", path, xs_wire::XS_WRITE, &payload).map(drop)
    }

    /// Makes a node where it is missing.
    ///
    /// # Errors
    /// EACCES, ENOSPC.
    pub fn make(&mut self, path: &str) -> Result<(), Error> {
        self.request("making", path, xs_wire::XS_MKDIR, &strings([path])).map(drop)
    }

    /// Removes a node and all below it; that it is not there is no error if its parent is.
    ///
    /// # Errors
    /// ENOENT, EACCES.
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.request("removing", path, xs_wire::XS_RM, &strings([path])).map(drop)
    }

    /// A node's permissions, as `r0`, `n1` and so on; the first is the owner's.
    ///
    /// # Errors
    /// ENOENT, EACCES.
    pub fn perms(&mut self, path: &str) -> Result<Vec<String>, Error> {
        let perms = self.request("permissions of", path, xs_wire::XS_GET_PERMS, &strings([path]))?;
        Ok(perms.split(|byte| *byte == 0).filter(|perm| !perm.is_empty()).map(text).collect())
    }

    /// Sets a node's permissions.
    ///
    /// # Errors
    /// ENOENT, EACCES.
    pub fn set_perms<S: AsRef<str>>(&mut self, path: &str, perms: &[S]) -> Result<(), Error> {
        let payload = strings(std::iter::once(path).chain(perms.iter().map(AsRef::as_ref)));
        self.request("setting permissions of", path, xs_wire::XS_SET_PERMS, &payload).map(drop)
    }
}
