//! Floods: frames at the highest rate of a thread, for attacks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::Result;

use super::Frames;
use crate::place::Place;

/// A running flood; it stops when dropped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Starts sending frames from an interface of a place; `frame` builds them from consecutive numbers.
    pub fn start(place: &Place, ifname: &str, frame: impl Fn(u32) -> Vec<u8> + Send + 'static) -> Result<Self> {
        /// Frames between two yields of the processor; tests have only two processors.
        const BURST: u32 = 64;
        let frames = Frames::on(place, ifname)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut number = 0u32;
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    number = number.wrapping_add(1);
                    // Frames that exceed the queue are lost, as in any flood.
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
            // It panics if a frame cannot be built, which makes the test fail anyway.
            let _ = thread.join();
        }
    }
}
