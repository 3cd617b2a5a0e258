//! CRC32C of bytes that follow one another.

use std::sync::LazyLock;

/// What zeros of length 2^n make of each bit of a checksum.
///
/// A CRC is linear: appending bytes shifts the sum of what is before them, whatever it is, and adds
/// theirs. Shifts of powers of two are worked out once; together they make any length.
static SHIFTS: LazyLock<[[u32; 32]; 64]> = LazyLock::new(|| {
    let one = std::array::from_fn(|bit| crc32c::crc32c_combine(1 << bit, 0, 1));
    let mut shifts = [one; 64];
    for power in 1..64 {
        let half = shifts[power - 1];
        shifts[power] = half.map(|image| shifted(image, &half));
    }
    shifts
});

/// The CRC32C of two pieces, from those of each; `len` is the length of the second in bytes.
pub fn combine(first: u32, second: u32, len: u64) -> u32 {
    let powers = (0..64).filter(|power| len >> power & 1 == 1);
    powers.fold(first, |sum, power| shifted(sum, &SHIFTS[power])) ^ second
}

fn shifted(sum: u32, shift: &[u32; 32]) -> u32 {
    let bits = (0..32).filter(|bit| sum >> bit & 1 == 1);
    bits.fold(0, |image, bit| image ^ shift[bit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_give_the_sum_of_the_whole() {
        let bytes: Vec<u8> = (0..70_000_u32).map(|n| (n.wrapping_mul(n) >> 3) as u8).collect();
        for at in [0, 1, 2, 4095, 4096, 65_536, 69_999, 70_000] {
            let (first, second) = bytes.split_at(at);
            let sum = combine(crc32c::crc32c(first), crc32c::crc32c(second), second.len() as u64);
            assert_eq!(sum, crc32c::crc32c(&bytes), "{at}");
        }
    }
}
