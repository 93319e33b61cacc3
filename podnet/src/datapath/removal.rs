//! Runs the program that removes entries of the connection table: see [`podnet_common::removal`].

use std::{io, os::fd::AsFd as _};

use aya::{Ebpf, programs::ProgramFd};
use podnet_common::removal::{AT_ONCE, Removal, START};

use super::{
    load_error::LoadError,
    loader::{REMOVE_FLOWS, load_program},
    test_run,
};

/// The program. It uses the tables of its object.
pub struct Remover(ProgramFd);

impl Remover {
    /// Loads the program, unless it is loaded already.
    ///
    /// # Errors
    /// The kernel rejects it, or the object is from a version without it.
    pub fn load(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        load_program(ebpf, REMOVE_FLOWS).map(Self)
    }

    /// Duplicates the descriptor.
    ///
    /// # Errors
    /// The process has too many open descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Removes the entries that still meet their conditions. Returns the number of entries removed.
    ///
    /// # Errors
    /// The kernel refuses to run the program. Some entries may have been removed.
    pub fn remove(&self, removals: &[Removal]) -> io::Result<u32> {
        frames(removals).try_fold(0, |removed, frame| Ok(removed + test_run::run(self.0.as_fd(), &frame)?))
    }
}

/// Encodes removals as frames for the program.
pub fn frames(removals: &[Removal]) -> impl Iterator<Item = Vec<u8>> {
    removals.chunks(AT_ONCE).map(|removals| [&[0; START], bytemuck::cast_slice(removals)].concat())
}
