//! Maglev tables: the backend of each slot, where nodes must agree (D. Eisenbud et al., "Maglev: A Fast and Reliable
//! Software Network Load Balancer", NSDI 2016, section 3.4).
//!
//! Every backend has a permutation of all slots, derived from its address and port alone. The backends take turns, each
//! taking the first free slot in its permutation. So all nodes compute the same table for the same backends, shares
//! differ by at most one slot, and adding or removing a backend moves few slots of the others. Weights are equal.

use podnet_common::layout::Backend;

/// Default number of slots, sufficient in most cases. When one of 100 backends leaves, 1.4 % of the others' slots move,
/// and 2.1 % in the worst of 2,000 cases; with 4,093 slots it would be 3.0 % and 4.6 %. Of 10 backends 0.6 %, of 200
/// 1.7 %.
pub const SIZE: u32 = 16_381;

/// The slot has no backend yet.
const FREE: u32 = u32::MAX;

/// Whether this can be the size of a table; otherwise some permutations wouldn't visit every slot.
pub fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|i| u64::from(*i) * u64::from(*i) <= u64::from(n)).all(|i| !n.is_multiple_of(i))
}

/// For each slot an index into `backends`, whose order is otherwise irrelevant. `size` must be a prime, and not less
/// than the number of backends.
pub fn table(backends: &[Backend], size: u32) -> Vec<u32> {
    let mut turns: Vec<(_, u32)> = backends.iter().map(identity).zip(0..).collect();
    turns.sort_unstable();
    let orders = turns.iter().map(|((addr, port), _)| order(*addr, *port, size)).collect();
    let mut table = populate(orders, size);
    table.iter_mut().for_each(|turn| *turn = turns[*turn as usize].1);
    table
}

/// A backend's identity, the same on every node: address and port, in host byte order. Sorts like socket addresses.
pub(crate) fn identity(backend: &Backend) -> (u128, u16) {
    let octets: [u8; 16] = bytemuck::cast(backend.addr.0);
    (u128::from_be_bytes(octets), backend.port.get())
}

/// First slot of a backend's permutation, and the step to the next.
fn order(addr: u128, port: u16, size: u32) -> (u32, u32) {
    let key = mix(mix(mix(u64::from(port)) ^ (addr >> 64) as u64) ^ addr as u64);
    let size = u64::from(size);
    ((key % size) as u32, (mix(key) % (size - 1)) as u32 + 1)
}

/// Mixes every bit of a number into all others (the finalizer of SplitMix64: Steele et al., OOPSLA 2014).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Pseudocode 1 of the paper: the backend of each slot. An order starts with the next slot that its backend will try.
fn populate(mut orders: Vec<(u32, u32)>, size: u32) -> Vec<u32> {
    let mut table = vec![FREE; size as usize];
    let mut filled = 0;
    while !orders.is_empty() {
        for (turn, (next, step)) in (0u32..).zip(&mut orders) {
            while table[*next as usize] != FREE {
                *next = advance(*next, *step, size);
            }
            table[*next as usize] = turn;
            *next = advance(*next, *step, size);
            filled += 1;
            if filled == size {
                return table;
            }
        }
    }
    Vec::new()
}

fn advance(slot: u32, step: u32, size: u32) -> u32 {
    let left = size - slot;
    if step < left { slot + step } else { step - left }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use podnet_common::addr::{Port, Proto};

    use super::*;

    fn backends(cluster: u32, count: u32, v4: bool) -> Vec<Backend> {
        let addr = |n: u32| {
            let [_, a, b, c] = (cluster * 4096 + n).to_be_bytes();
            let addr = if v4 { format!("10.{a}.{b}.{c}") } else { format!("fd00:{a:x}:{b:x}::{c:x}") };
            addr.parse::<IpAddr>().unwrap().into()
        };
        (0..count).map(|n| Backend { addr: addr(n), port: Port::new(8080), proto: Proto::TCP, _pad: 0 }).collect()
    }

    /// The table with the backends themselves.
    fn spread(backends: &[Backend], size: u32) -> Vec<Backend> {
        table(backends, size).into_iter().map(|i| backends[i as usize]).collect()
    }

    #[test]
    fn example_of_the_paper() {
        assert_eq!(populate(vec![(3, 4), (0, 2), (3, 1)], 7), [1, 0, 1, 0, 2, 2, 0], "table 1, before");
        assert_eq!(populate(vec![(3, 4), (3, 1)], 7), [0, 0, 0, 0, 1, 1, 1], "and after B1 is removed");
    }

    #[test]
    fn table_does_not_depend_on_the_order_of_backends() {
        for v4 in [true, false] {
            let sorted = backends(1, 37, v4);
            let table = spread(&sorted, 4093);
            let mut other = sorted;
            other.reverse();
            other.swap(3, 30);
            assert_eq!(spread(&other, 4093), table);
        }
        // The result for these backends on nodes of any version or architecture.
        assert_eq!(table(&backends(1, 5, true), 13), [0, 0, 3, 4, 2, 4, 3, 0, 2, 1, 2, 1, 1]);
        assert_eq!(table(&backends(1, 13, true), 13).len(), 13, "as many backends as slots");
        assert!(table(&[], 13).is_empty());
    }

    #[test]
    fn shares_differ_by_at_most_one_slot() {
        for count in [1, 2, 3, 10, 100, 1000] {
            let mut shares = vec![0; count as usize];
            table(&backends(2, count, true), SIZE).iter().for_each(|&i| shares[i as usize] += 1);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count}: {least} to {most}");
        }
    }

    /// Fraction of the other backends' slots that move when one leaves: the mean and the worst of many clusters.
    fn disruption(count: u32, size: u32) -> (f64, f64) {
        let mut shares = Vec::new();
        for cluster in 0..4 {
            let before = backends(cluster, count, cluster % 2 == 0);
            let table = spread(&before, size);
            for leaving in before.iter().step_by(count.div_ceil(10) as usize) {
                let rest: Vec<_> = before.iter().filter(|backend| *backend != leaving).copied().collect();
                let others: Vec<_> = table.iter().zip(spread(&rest, size)).filter(|(old, _)| *old != leaving).collect();
                let moved = others.iter().filter(|(old, new)| *old != new).count();
                shares.push(moved as f64 / others.len() as f64);
            }
        }
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        (mean, shares.into_iter().fold(0.0, f64::max))
    }

    #[test]
    fn few_slots_move_when_a_backend_leaves() {
        let (mean, worst) = disruption(100, SIZE);
        println!("100 backends: {:.2} %, at worst {:.2} %", mean * 100.0, worst * 100.0);
        assert!(worst <= 0.02, "{mean} {worst}");
        let (mean, worst) = disruption(10, SIZE);
        println!("10 backends: {:.2} %, at worst {:.2} %", mean * 100.0, worst * 100.0);
        assert!(worst <= 0.02, "{mean} {worst}");
    }

    #[test]
    fn primes() {
        let found: Vec<_> = (0..30).filter(|n| is_prime(*n)).collect();
        assert_eq!(found, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(SIZE) && is_prime(4093) && is_prime(u32::MAX - 4) && !is_prime(4095) && !is_prime(u32::MAX));
    }
}
