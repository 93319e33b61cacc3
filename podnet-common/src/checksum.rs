//! Internet checksum (RFC 1071) with incremental updates (RFC 1624, equation 3), and incremental CRC-32C for SCTP.
//!
//! Sums are computed over words in memory order: one's complement addition is independent of byte order as long as all
//! operands share it (RFC 1071, section 2(B)).

/// Folds a one's complement sum of 32-bit words to 32 bits.
#[inline(always)]
pub const fn fold32(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// Folds a one's complement sum to 16 bits.
#[inline(always)]
pub const fn fold16(sum: u64) -> u16 {
    let sum = fold32(sum) as u64;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Difference caused by replacing `old` with `new`, as an argument for [`apply`].
#[inline(always)]
pub const fn difference(old: u32, new: u32) -> u64 {
    !old as u64 + new as u64
}

/// [`difference`] for addresses.
#[inline(always)]
pub const fn difference4(old: [u32; 4], new: [u32; 4]) -> u64 {
    difference(old[0], new[0]) + difference(old[1], new[1]) + difference(old[2], new[2]) + difference(old[3], new[3])
}

/// New value of the checksum field `field` after a change of the covered data by `difference`.
#[inline(always)]
pub const fn apply(field: u16, difference: u64) -> u16 {
    !fold16(!field as u64 + difference)
}

/// CRC-32C polynomial, bit-reversed (RFC 9260, appendix A).
const CRC32C: u32 = 0x82f6_3b78;
/// `x^(8 * 2^k)` modulo the polynomial, for each bit `k` of a length in bytes.
const POWERS: [u32; 16] = {
    let mut powers = [0x0080_0000; 16];
    let mut k = 1;
    while k < 16 {
        powers[k] = multiply(powers[k - 1], powers[k - 1]);
        k += 1;
    }
    powers
};

/// XOR difference of a CRC-32C when one word of the data changes by `change` (old XOR new, in memory order) and `after`
/// bytes (less than 65,536) follow that word. A CRC is linear, so the difference depends on no other data.
#[inline(always)]
pub const fn crc32c_difference(change: u32, after: u32) -> u32 {
    // As a polynomial, a data word is the content of the CRC register once it has been shifted in; shift it on by 32
    // bits.
    let mut crc = multiply(u32::from_le(change), POWERS[2]);
    let mut k = 0;
    while k < POWERS.len() {
        let moved = multiply(crc, POWERS[k]);
        let taken = 0u32.wrapping_sub(after >> k & 1);
        crc = (moved & taken) | (crc & !taken);
        k += 1;
    }
    crc
}

/// Product of two polynomials modulo the CRC-32C polynomial. Branch-free: each branch adds paths for the
/// verifier to follow.
#[inline(always)]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut i = 0;
    while i < 32 {
        product ^= b & 0u32.wrapping_sub(a >> (31 - i) & 1);
        b = (b >> 1) ^ (CRC32C & 0u32.wrapping_sub(b & 1));
        i += 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// CRC-32C bit by bit (RFC 9260, appendix A).
    fn crc32c(data: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in data {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { CRC32C } else { 0 };
            }
        }
        !crc
    }

    #[test]
    fn the_reference_is_crc32c() {
        // Check values from the "Catalogue of parametrised CRC algorithms" and RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    /// RFC 1071's definition, over bytes in network order.
    fn reference(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn words(data: &[u8]) -> impl Iterator<Item = u32> + '_ {
        data.chunks_exact(4).map(|c| u32::from_ne_bytes(c.try_into().unwrap()))
    }

    proptest! {
        #[test]
        fn a_crc_can_be_updated_without_the_data(
            mut data in proptest::collection::vec(any::<u8>(), 4..3000), at: proptest::sample::Index, new: u32,
        ) {
            let at = at.index(data.len() - 3);
            let before = crc32c(&data);
            let old = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
            data[at..at + 4].copy_from_slice(&new.to_ne_bytes());
            let after = (data.len() - at - 4) as u32;
            prop_assert_eq!(before ^ crc32c_difference(old ^ new, after), crc32c(&data));
        }

        #[test]
        fn sum_of_words_is_rfc_1071(data in proptest::collection::vec(any::<u8>(), 0..64).prop_map(|mut v| { v.truncate(v.len() / 4 * 4); v })) {
            let sum: u64 = words(&data).map(u64::from).sum();
            prop_assert_eq!((!fold16(sum)).to_be(), reference(&data));
        }

        #[test]
        fn incremental_update_equals_a_new_sum(mut data: [u8; 32], at in 0usize..8, new: u32) {
            let sum: u64 = words(&data).map(u64::from).sum();
            let field = !fold16(sum);
            let old = words(&data).nth(at).unwrap();
            data[at * 4..at * 4 + 4].copy_from_slice(&new.to_ne_bytes());
            let updated = apply(field, difference(old, new));
            let again = !fold16(words(&data).map(u64::from).sum());
            // 0x0000 and 0xffff represent the same number in one's complement.
            prop_assert!(updated == again || (updated ^ again) == 0xffff);
        }
    }
}
