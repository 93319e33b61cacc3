//! A corpus of attacks, as data: each is put into a running cluster, and the same holds after each. Frames are attacked with
//! in `packet/hostile.rs`.
//!
//! To add one, write it into `objects.yaml` or `files.yaml`.

mod files;
mod objects;
mod site;

use std::time::Instant;

use anyhow::{Result, ensure};
use serde::de::DeserializeOwned;

use site::Site;

/// The attacks of a file.
fn corpus<T: DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    Ok(serde_saphyr::from_str(text)?)
}

/// Runs all attacks one after another, also after one has succeeded.
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
fn objects_harm_nobody() -> Result<()> {
    let site = Site::new()?;
    repel(&site, &corpus(include_str!("objects.yaml"))?, objects::Attack::name, objects::attack)
}

#[test]
fn files_harm_nobody() -> Result<()> {
    let site = Site::new()?;
    repel(&site, &corpus(include_str!("files.yaml"))?, files::Attack::name, files::attack)
}
