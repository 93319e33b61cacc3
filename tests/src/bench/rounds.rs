//! Measuring variants in turn.

use std::io::IsTerminal as _;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Options,
    results::{Results, Series},
};

/// Something that is measured once per round.
pub struct Variant<'a> {
    /// Name of the row.
    pub name: String,
    /// Names of the baseline rows.
    pub baselines: Vec<String>,
    /// Takes one sample.
    pub sample: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl<'a> Variant<'a> {
    /// A variant.
    pub fn new(name: impl Into<String>, baselines: &[String], sample: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self { name: name.into(), baselines: baselines.to_vec(), sample: Box::new(sample) }
    }
}

/// Keeps the requested variants and their baselines. Returns whether any are left.
pub fn select(options: &Options, variants: &mut Vec<Variant<'_>>) -> bool {
    let mut wanted: Vec<String> =
        variants.iter().filter(|v| options.wants(&v.name)).flat_map(|v| v.baselines.clone()).collect();
    wanted.extend(variants.iter().filter(|v| options.wants(&v.name)).map(|v| v.name.clone()));
    variants.retain(|v| wanted.contains(&v.name));
    !variants.is_empty()
}

/// Maximum number of failed rounds.
const FAILURES: usize = 3;

/// Measures every variant in every round, in alternating order, after a warm-up round. A round with a failure is
/// discarded and noted.
///
/// # Errors
/// The failure, if there are more than three.
pub fn interleave(
    title: &str,
    unit: &'static str,
    rounds: usize,
    mut variants: Vec<Variant<'_>>,
    results: &mut Results,
) -> Result<()> {
    let mut samples = vec![Vec::with_capacity(rounds); variants.len()];
    let bar = progress(title, ((rounds + 1) * variants.len()) as u64);
    let (mut round, mut failures) = (0, 0);
    while round <= rounds {
        let mut order: Vec<usize> = (0..variants.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        let taken = order.into_iter().map(|i| {
            let variant = &mut variants[i];
            bar.set_message(variant.name.clone());
            let sample = (variant.sample)().with_context(|| format!("while measuring {}", variant.name))?;
            bar.inc(1);
            Ok((i, sample))
        });
        match taken.collect::<Result<Vec<_>>>() {
            Ok(taken) => {
                taken.into_iter().filter(|_| round > 0).for_each(|(i, sample)| samples[i].push(sample));
                round += 1;
            }
            Err(error) if failures < FAILURES => {
                failures += 1;
                eprintln!("skipping a round: {error:#}");
                results.note(format!("A round was skipped: {error:#}."));
            }
            Err(error) => return Err(error),
        }
    }
    bar.finish_and_clear();
    for (variant, values) in variants.into_iter().zip(samples) {
        results.push(Series { name: variant.name, unit, values, baselines: variant.baselines });
    }
    Ok(())
}

/// A progress bar on standard error, or a line if that is not a terminal.
pub fn progress(title: &str, length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        eprintln!("measuring {title}: {length} samples");
    }
    let style = ProgressStyle::with_template("{prefix:28} [{bar:30}] {pos}/{len} {eta:>4} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::new(length).with_style(style).with_prefix(title.to_owned())
}

/// A spinner on standard error for work of unknown length.
pub fn spinner(message: impl Into<String>) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message.into());
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn rounds_alternate_their_order_after_a_warm_up() {
        let log = RefCell::new(String::new());
        let clock = RefCell::new(0.0);
        let tick = |name: char| {
            log.borrow_mut().push(name);
            *clock.borrow_mut() += 1.0;
            Ok(*clock.borrow())
        };
        let variants = vec![Variant::new("a", &[], || tick('a')), Variant::new("b", &["a".into()], || tick('b'))];
        let mut results = Results::default();
        interleave("test", "s", 3, variants, &mut results).unwrap();
        assert_eq!(*log.borrow(), "abbaabba");
        assert_eq!(results.get("a").unwrap().values, [4.0, 5.0, 8.0]);
        assert_eq!(results.get("b").unwrap().values, [3.0, 6.0, 7.0]);
    }

    #[test]
    fn failed_rounds_are_discarded_and_noted() {
        let count = RefCell::new(0);
        let fails = |times: &'static [i32]| {
            move || {
                *count.borrow_mut() += 1;
                anyhow::ensure!(!times.contains(&count.borrow()), "as it should");
                Ok(f64::from(*count.borrow()))
            }
        };
        let mut results = Results::default();
        interleave("test", "s", 2, vec![Variant::new("a", &[], fails(&[2]))], &mut results).unwrap();
        assert_eq!(results.get("a").unwrap().values, [3.0, 4.0]);
        let always = Variant::new("b", &[], || anyhow::bail!("always"));
        assert!(interleave("test", "s", 2, vec![always], &mut results).is_err());
    }

    #[test]
    fn filter_keeps_baselines() {
        let variant = |name: &str, base: &[&str]| {
            Variant::new(name, &base.iter().map(|b| b.to_string()).collect::<Vec<_>>(), || Ok(1.0))
        };
        let mut variants =
            vec![variant("x/direct", &[]), variant("x/clusterip", &["x/direct"]), variant("x/other", &[])];
        let options =
            Options { quick: true, json: None, filter: Some("clusterip".into()), out: "x".into(), before: None };
        select(&options, &mut variants);
        assert_eq!(variants.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["x/direct", "x/clusterip"]);
    }
}
