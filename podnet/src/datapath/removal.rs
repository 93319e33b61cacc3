//! Runs the programs that remove entries of the connection table: see [`podnet_common::removal`].

use std::{io, os::fd::AsFd as _};

use aya::{Ebpf, programs::ProgramFd};
use podnet_common::{
    layout::Tuple,
    removal::{AT_ONCE, EVALUATED_AT_ONCE, Removal, START},
};

use super::{
    load_error::LoadError,
    loader::{DENY_FLOWS, REMOVE_FLOWS, load_program},
    test_run,
};

/// The programs. They use the tables of their object.
pub struct Remover {
    removals: ProgramFd,
    denied: ProgramFd,
}

impl Remover {
    /// Loads the programs, unless they are loaded already.
    ///
    /// # Errors
    /// The kernel rejects one, or the object is from a version without it.
    pub fn load(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self { removals: load_program(ebpf, REMOVE_FLOWS)?, denied: load_program(ebpf, DENY_FLOWS)? })
    }

    /// Duplicates the descriptors.
    ///
    /// # Errors
    /// The process has too many open descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { removals: self.removals.try_clone()?, denied: self.denied.try_clone()? })
    }

    /// Removes the entries that still meet their conditions. Returns the number of entries removed.
    ///
    /// # Errors
    /// The kernel refuses to run the program. Some entries may have been removed.
    pub fn remove(&self, removals: &[Removal]) -> io::Result<u32> {
        run(&self.removals, frames(removals))
    }

    /// Marks those halves of flows that network policy denies by now; `halves` are their keys. Returns the number of
    /// entries that were not denied before.
    ///
    /// # Errors
    /// As of [`Self::remove`].
    pub fn deny(&self, halves: &[Tuple]) -> io::Result<u32> {
        run(&self.denied, frames_of_keys(halves))
    }
}

fn run(program: &ProgramFd, mut frames: impl Iterator<Item = Vec<u8>>) -> io::Result<u32> {
    frames.try_fold(0, |removed, frame| Ok(removed + test_run::run(program.as_fd(), &frame)?))
}

/// Encodes removals as frames for their program.
pub fn frames(removals: &[Removal]) -> impl Iterator<Item = Vec<u8>> {
    removals.chunks(AT_ONCE).map(|removals| [&[0; START], bytemuck::cast_slice(removals)].concat())
}

/// Encodes keys as frames for the program that evaluates network policy.
pub fn frames_of_keys(keys: &[Tuple]) -> impl Iterator<Item = Vec<u8>> {
    keys.chunks(EVALUATED_AT_ONCE).map(|keys| [&[0; START], bytemuck::cast_slice(keys)].concat())
}
