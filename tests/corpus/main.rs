//! A corpus of attacks on a running cluster, as data; after each of them the same conditions must hold. Attacks by
//! packets are in `packet/hostile.rs`.
//!
//! To add one, write it to `objects.yaml` or `files.yaml`.

mod files;
mod objects;
mod site;

use std::time::Instant;

use anyhow::{Result, ensure};
use serde::de::DeserializeOwned;

use site::Site;

/// Attacks in a file.
fn corpus<T: DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    Ok(serde_saphyr::from_str(text)?)
}

/// Runs all attacks in sequence, even after one has succeeded.
fn repel<T>(
    site: &Site,
    attacks: &[T],
    name: impl Fn(&T) -> &str,
    attack: impl Fn(&Site, &T) -> Result<()>,
) -> Result<()> {
    let mut failures = Vec::new();
    for one in attacks {
        let start = Instant::now();
        let result = attack(site, one).and_then(|()| site.holds());
        println!(
            "{} ... {}, {:.1} s",
            name(one),
            if result.is_ok() { "ok" } else { "FAILED" },
            start.elapsed().as_secs_f32()
        );
        if let Err(error) = result {
            failures.push(format!("{}: {error:?}", name(one)));
        }
        site.clear()?;
    }
    ensure!(failures.is_empty(), "{} of {} attacks succeed:\n{}", failures.len(), attacks.len(), failures.join("\n"));
    Ok(())
}

#[test]
fn hostile_objects_do_no_harm() -> Result<()> {
    let site = Site::new()?;
    repel(&site, &corpus(include_str!("objects.yaml"))?, objects::Attack::name, objects::attack)
}

#[test]
fn hostile_files_do_no_harm() -> Result<()> {
    let site = Site::new()?;
    repel(&site, &corpus(include_str!("files.yaml"))?, files::Attack::name, files::attack)
}
