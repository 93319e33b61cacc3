//! Frames as fast as a thread can send them, for attacks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::Result;

use super::Frames;
use crate::lab::Place;

/// A running flood; it ends when it is dropped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Starts sending from an interface of a place what `frame` makes of ever larger numbers.
    pub fn start(place: &Place, ifname: &str, frame: impl Fn(u32) -> Vec<u8> + Send + 'static) -> Result<Self> {
        /// Between looks whether others want the processor, of which tests have two.
        const BURST: u32 = 64;
        let frames = Frames::on(place, ifname)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut number = 0u32;
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    number = number.wrapping_add(1);
                    // What the queue has no room for is lost, as in every flood.
                    let _ = frames.send(&frame(number));
                }
                thread::yield_now();
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics where a frame can't be made, which fails the test by itself.
            let _ = thread.join();
        }
    }
}
