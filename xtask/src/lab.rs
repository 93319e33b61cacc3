//! `cargo xtask lab`: a shell in the cluster of the demonstration.

use std::ffi::OsString;

use anyhow::Result;

use crate::build;
use crate::command::exec;
use crate::setup::{self, Purpose};
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    setup::ensure(workspace, Purpose::Lab)?;
    let built = build::release(workspace)?;
    exec(built.as_root("podnet-lab")?.arg("shell").args(args))
}
