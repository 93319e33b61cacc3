//! Packets from a capture (pcap, as written by tcpdump) or from hexadecimal digits.

use std::path::Path;

use podnet_cni::files;
use podnet_common::packet::{ETH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet};
use thiserror::Error;

/// Maximum size of a capture, in bytes.
const MAX: u64 = 64 << 20;
/// Link types (`LINKTYPE_*` of the pcap project): Ethernet, and packets that begin with their IP header.
const ETHERNET: u32 = 1;
const RAW: u32 = 101;

/// Why no packets were read.
#[derive(Debug, Error)]
pub(super) enum CaptureError {
    /// The file can't be read.
    #[error("cannot read the capture {path}: {reason}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        reason: String,
    },
    /// The file isn't in a supported format.
    #[error(
        "{path} is not a supported capture: {reason}. Create one with `tcpdump -w FILE`, or convert it: `tcpdump -r \
         {path} -w FILE`"
    )]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The text contains other characters than hexadecimal digits.
    #[error("expected a frame in hexadecimal digits, two per byte, optionally separated by spaces or colons")]
    Digits,
}

/// Reads the frames of a capture.
pub(super) fn read(path: &Path) -> Result<Vec<Vec<u8>>, CaptureError> {
    let shown = path.display().to_string();
    let bytes = files::read(path, MAX)
        .map_err(|error| CaptureError::Read { path: shown.clone(), reason: error.to_string() })?;
    frames(&bytes).map_err(|reason| CaptureError::Format { path: shown, reason })
}

/// The frames of a capture in memory.
fn frames(bytes: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    let word = |at: usize| bytes.get(at..at + 4).map(|word| [word[0], word[1], word[2], word[3]]);
    // Written in either byte order, with microseconds or nanoseconds.
    let read: fn([u8; 4]) -> u32 = match word(0) {
        Some([0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]) => u32::from_le_bytes,
        Some([0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d]) => u32::from_be_bytes,
        Some([0x0a, 0x0d, 0x0d, 0x0a]) => return Err("it is in the format pcapng"),
        _ => return Err("it lacks the magic number of a pcap file"),
    };
    let link = word(20).map(read).ok_or("its header is truncated")? & 0xffff;
    if link != ETHERNET && link != RAW {
        return Err("its frames are neither Ethernet nor plain IP");
    }
    let (mut at, mut frames) = (24, Vec::new());
    while at < bytes.len() {
        let len = word(at + 8).map(read).ok_or("a packet header is truncated")? as usize;
        let end = at.saturating_add(16).saturating_add(len);
        let frame = bytes.get(at + 16..end).ok_or("a packet is truncated")?;
        frames.push(if link == RAW { with_ethernet(frame) } else { frame.to_vec() });
        at = end;
    }
    Ok(frames)
}

/// Parses a frame from digits. A packet that begins with its IP header gets an Ethernet header.
pub(super) fn digits(text: &str) -> Result<Vec<u8>, CaptureError> {
    let digits: Vec<_> = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
    let values: Option<Vec<_>> = digits.iter().map(|digit| digit.to_digit(16)).collect();
    let values = values.filter(|values| values.len() % 2 == 0 && !values.is_empty()).ok_or(CaptureError::Digits)?;
    let bytes: Vec<_> = values.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
    let ethernet = matches!(bytes.get(12..14), Some([0x08, 0x00 | 0x06] | [0x86, 0xdd]));
    let ip = matches!(bytes.first(), Some(0x45..=0x4f | 0x60..=0x6f));
    Ok(if ip && !ethernet { with_ethernet(&bytes) } else { bytes })
}

/// Puts an Ethernet header before an IP packet.
fn with_ethernet(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet.first().is_some_and(|first| first >> 4 == 6) { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    let mut frame = Vec::with_capacity(ETH + packet.len());
    frame.extend_from_slice(bytemuck::bytes_of(&Ethernet { ethertype, ..Ethernet::default() }));
    frame.extend_from_slice(packet);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A capture with these frames.
    fn capture(link: u32, word: fn(u32) -> [u8; 4], packets: &[&[u8]]) -> Vec<u8> {
        let mut bytes = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, link].map(word).concat();
        for packet in packets {
            bytes.extend([1, 2, packet.len() as u32, packet.len() as u32].map(word).concat());
            bytes.extend(*packet);
        }
        bytes
    }

    #[test]
    fn reads_captures_of_either_byte_order() {
        let frame = [7u8; 60];
        for word in [u32::to_le_bytes, u32::to_be_bytes] {
            assert_eq!(frames(&capture(ETHERNET, word, &[&frame, &frame[..20]])).unwrap(), [&frame[..], &frame[..20]]);
        }
        let raw = frames(&capture(RAW, u32::to_le_bytes, &[&[0x60; 40]])).unwrap();
        assert_eq!((raw[0].len(), &raw[0][12..15]), (54, &[0x86, 0xdd, 0x60][..]));
        let cut = capture(ETHERNET, u32::to_le_bytes, &[&frame]);
        for len in [0, 3, 22, 30, 50] {
            assert!(frames(&cut[..len]).is_err(), "{len}");
        }
        assert!(frames(&capture(113, u32::to_le_bytes, &[])).unwrap_err().contains("neither"));
        assert!(frames(&[0x0a, 0x0d, 0x0d, 0x0a, 0, 0, 0, 0]).unwrap_err().contains("pcapng"));
    }

    #[test]
    fn digits_may_be_a_frame_or_a_packet() {
        let ethernet = "02 00 00 00 00 01 02 00 00 00 00 02 08 00 45 00";
        assert_eq!(digits(ethernet).unwrap().len(), 16);
        assert_eq!(digits("45:00:00:14").unwrap()[12..], [8, 0, 0x45, 0, 0, 0x14]);
        for wrong in ["", "4", "4x", "hello"] {
            assert!(digits(wrong).is_err(), "{wrong}");
        }
    }
}
