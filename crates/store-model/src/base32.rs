//! Nix's base-32: an alphabet without `e`, `o`, `t` and `u`, most significant digit first, read
//! from the last byte to the first.

/// Digits in the order of their values.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// Value of each byte as a digit; 255 where the byte is not one.
const DIGIT_VALUES: [u8; 256] = {
    let mut values = [255u8; 256];
    let mut digit = 0u8;
    while digit < 32 {
        values[ALPHABET[digit as usize] as usize] = digit;
        digit += 1;
    }
    values
};

/// Returns how many digits `n_bytes` bytes take.
#[must_use]
pub const fn encoded_len(n_bytes: usize) -> usize {
    (n_bytes * 8).div_ceil(5)
}

/// Returns whether `byte` is a digit.
#[must_use]
pub const fn is_digit(byte: u8) -> bool {
    DIGIT_VALUES[byte as usize] != 255
}

/// Returns the digits of `bytes`.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    (0..encoded_len(bytes.len()))
        .rev()
        .map(|digit_idx| {
            let bit = digit_idx * 5;
            let (byte_idx, shift) = (bit / 8, bit % 8);
            let low = u16::from(bytes[byte_idx]);
            let high = u16::from(bytes.get(byte_idx + 1).copied().unwrap_or(0));
            char::from(ALPHABET[usize::from(((high << 8 | low) >> shift) & 0x1f)])
        })
        .collect()
}

/// Returns the `n_bytes` bytes that `digits` encodes, or `None` if a byte is not a digit, the
/// length does not fit, or the leftover bits are not zero (so that every value has one spelling).
#[must_use]
pub fn decode(digits: &[u8], n_bytes: usize) -> Option<Vec<u8>> {
    if digits.len() != encoded_len(n_bytes) {
        return None;
    }
    let mut bytes = vec![0u8; n_bytes];
    for (digit_idx, digit) in digits.iter().rev().enumerate() {
        let value = DIGIT_VALUES[usize::from(*digit)];
        if value == 255 {
            return None;
        }
        let bit = digit_idx * 5;
        let (byte_idx, shift) = (bit / 8, bit % 8);
        let [low, high] = (u16::from(value) << shift).to_le_bytes();
        bytes[byte_idx] |= low;
        match bytes.get_mut(byte_idx + 1) {
            Some(next) => *next |= high,
            None if high != 0 => return None,
            None => {}
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_sha256_has_the_digits_that_nix_prints() {
        let digest = crate::hash::Hash::digest(crate::HashAlgorithm::Sha256, b"");
        assert_eq!(
            encode(digest.as_bytes()),
            "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"
        );
    }

    #[test]
    fn leftover_bits_must_be_zero() {
        assert_eq!(decode(b"zz", 1), None);
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(decode(encode(&bytes).as_bytes(), bytes.len()), Some(bytes));
        }
    }
}
