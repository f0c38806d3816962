//! Prints floats as the JSON library of Nix 2.8 does.
//!
//! It uses Grisu2 (Florian Loitsch, "Printing Floating-Point Numbers Quickly and Accurately with
//! Integers", 2010), which finds digits that are read back as the same float, but in one of some
//! thousand cases not the fewest or the nearest ones: `7.276e-10` becomes `7.276000000000001e-10`.
//! A builder would see the difference, so nothing but Grisu2 will do here.

use std::fmt::Write as _;

/// How many bits of its significand a double stores.
const N_STORED_BITS: u32 = 52;

/// What is taken from a double's exponent: its bias, and the width of the significand.
const EXPONENT_BIAS: i32 = 0x3ff + 52;

/// The least binary exponent of a number whose digits are generated: the paper's alpha, for which
/// the integral part fits 32 bits and the rest can be multiplied by ten.
const MIN_SCALED_EXPONENT: i32 = -60;

/// The decimal exponent of the first of [`POWERS_OF_TEN`].
const MIN_POWER: i32 = -300;

/// The step between the decimal exponents of [`POWERS_OF_TEN`].
const POWER_STEP: i32 = 8;

/// The most digits before the point without an exponent.
const MAX_POINT: i32 = 15;

/// One less than the most zeros right behind the point without an exponent, negated.
const MIN_POINT: i32 = -4;

/// A number `significand * 2^exponent`.
#[derive(Clone, Copy)]
struct Scaled {
    significand: u64,
    exponent: i32,
}

impl Scaled {
    fn normalised(self) -> Self {
        let shift = self.significand.leading_zeros();
        Self {
            significand: self.significand << shift,
            exponent: self.exponent - shift.cast_signed(),
        }
    }

    /// Returns the product, rounded half up to 64 bits.
    fn times(self, other: Self) -> Self {
        let product = u128::from(self.significand) * u128::from(other.significand);
        let rounded = (product + (1 << 63)) >> 64;
        Self {
            // The product of two numbers below 2^64 is below 2^128 by more than is added.
            significand: u64::try_from(rounded).unwrap_or(u64::MAX),
            exponent: self.exponent + other.exponent + 64,
        }
    }
}

/// Decimal digits and the power of ten of the last of them.
struct Decimal {
    digits: Vec<u8>,
    exponent: i32,
}

/// Returns a finite float as JSON.
pub(super) fn print_float(float: f64) -> String {
    let sign = if float.is_sign_negative() { "-" } else { "" };
    if float == 0.0 {
        return format!("{sign}0.0");
    }
    let decimal = grisu2(float.abs());
    format!("{sign}{}", with_point(&decimal))
}

/// Puts a point, zeros and an exponent where they belong.
fn with_point(decimal: &Decimal) -> String {
    let digits: String = decimal
        .digits
        .iter()
        .map(|digit| char::from(b'0' + digit))
        .collect();
    // There are at most 17 digits.
    let n_digits = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let point = n_digits + decimal.exponent;
    let zeros = |n: i32| "0".repeat(usize::try_from(n).unwrap_or(0));
    if n_digits <= point && point <= MAX_POINT {
        return format!("{digits}{}.0", zeros(point - n_digits));
    }
    if 0 < point && point <= MAX_POINT {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or(0));
        return format!("{whole}.{fraction}");
    }
    if MIN_POINT < point && point <= 0 {
        return format!("0.{}{digits}", zeros(-point));
    }
    let (first, others) = digits.split_at(1);
    let mut text = first.to_owned();
    if !others.is_empty() {
        text.push('.');
        text.push_str(others);
    }
    let sign = if point > 0 { '+' } else { '-' };
    // Writing to a string cannot fail.
    let _infallible = write!(text, "e{sign}{:02}", (point - 1).abs());
    text
}

/// Returns the digits of a positive float.
fn grisu2(float: f64) -> Decimal {
    let (lower, value, upper) = with_boundaries(float);
    let (power, power_exponent) = cached_power(upper.exponent);
    let (lower, value, upper) = (lower.times(power), value.times(power), upper.times(power));
    // A product is wrong by one at most: what is one inside both bounds is surely inside.
    let upper = Scaled {
        significand: upper.significand - 1,
        ..upper
    };
    let interval = Interval {
        width: upper.significand - (lower.significand + 1),
        distance: upper.significand - value.significand,
    };
    generate_digits(upper, interval, -power_exponent)
}

/// Returns a float between the numbers halfway to its neighbours, all normalised to one exponent.
fn with_boundaries(float: f64) -> (Scaled, Scaled, Scaled) {
    let bits = float.to_bits();
    let fraction = bits & ((1 << N_STORED_BITS) - 1);
    // 11 bits, as the sign is not set.
    let biased = i32::try_from(bits >> N_STORED_BITS).unwrap_or(0);
    let (significand, exponent) = if biased == 0 {
        (fraction, 1 - EXPONENT_BIAS)
    } else {
        (fraction | 1 << N_STORED_BITS, biased - EXPONENT_BIAS)
    };
    let value = Scaled {
        significand,
        exponent,
    };
    let upper = Scaled {
        significand: 2 * significand + 1,
        exponent: exponent - 1,
    }
    .normalised();
    // The neighbour below a power of two is twice as near.
    let (lower, lower_exponent) = if fraction == 0 && biased > 1 {
        (4 * significand - 1, exponent - 2)
    } else {
        (2 * significand - 1, exponent - 1)
    };
    let lower = Scaled {
        significand: lower << (lower_exponent - upper.exponent),
        exponent: upper.exponent,
    };
    (lower, value.normalised(), upper)
}

/// Returns a power of ten that brings a number of that binary exponent into the range in which
/// digits are generated, and the power's decimal exponent.
fn cached_power(exponent: i32) -> (Scaled, i32) {
    let n_bits = MIN_SCALED_EXPONENT - exponent - 1;
    // 78913 / 2^18 is the logarithm of 2 to base 10.
    let wanted = (n_bits * 78913) / (1 << 18) + i32::from(n_bits > 0);
    let idx = (wanted - MIN_POWER + (POWER_STEP - 1)) / POWER_STEP;
    // The table reaches from below the least to above the greatest double.
    let (significand, exponent) = POWERS_OF_TEN[usize::try_from(idx).unwrap_or(0)];
    let power = Scaled {
        significand,
        exponent,
    };
    (power, MIN_POWER + idx * POWER_STEP)
}

/// The numbers that are read back as the float.
#[derive(Clone, Copy)]
struct Interval {
    width: u64,
    /// How far below the upper end the float is.
    distance: u64,
}

/// Returns the first digits of `upper`, the interval's end: as few as lead into the interval.
fn generate_digits(upper: Scaled, mut interval: Interval, mut exponent: i32) -> Decimal {
    let shift = upper.exponent.unsigned_abs();
    let one = 1u64 << shift;
    let mut digits = Vec::new();
    let mut whole = upper.significand >> shift;
    let mut fraction = upper.significand & (one - 1);

    for n_left in (0..=whole.checked_ilog10().unwrap_or(0)).rev() {
        let unit = 10u64.pow(n_left);
        push_digit(&mut digits, whole / unit);
        whole %= unit;
        let rest = (whole << shift) + fraction;
        if rest <= interval.width {
            exponent += n_left.cast_signed();
            approach(&mut digits, interval, rest, unit << shift);
            return Decimal { digits, exponent };
        }
    }
    loop {
        fraction *= 10;
        interval.width *= 10;
        interval.distance *= 10;
        push_digit(&mut digits, fraction >> shift);
        fraction &= one - 1;
        exponent -= 1;
        if fraction <= interval.width {
            approach(&mut digits, interval, fraction, one);
            return Decimal { digits, exponent };
        }
    }
}

fn push_digit(digits: &mut Vec<u8>, digit: u64) {
    // A digit is less than ten.
    digits.push(u8::try_from(digit).unwrap_or(9));
}

/// Lowers the last digit as long as that leads nearer to the float and stays in the interval.
///
/// The digits lie `rest` below the interval's end, and `unit` is what one in the last digit means.
fn approach(digits: &mut [u8], interval: Interval, mut rest: u64, unit: u64) {
    let Interval { width, distance } = interval;
    while rest < distance
        && width - rest >= unit
        && (rest + unit < distance || distance - rest > rest + unit - distance)
    {
        if let Some(last) = digits.last_mut() {
            *last -= 1;
        }
        rest += unit;
    }
}

/// Every eighth power of ten: its significand, rounded to 64 bits, and its binary exponent.
const POWERS_OF_TEN: [(u64, i32); 79] = [
    (0xab70_fe17_c79a_c6ca, -1060),
    (0xff77_b1fc_bebc_dc4f, -1034),
    (0xbe56_91ef_416b_d60c, -1007),
    (0x8dd0_1fad_907f_fc3c, -980),
    (0xd351_5c28_3155_9a83, -954),
    (0x9d71_ac8f_ada6_c9b5, -927),
    (0xea9c_2277_23ee_8bcb, -901),
    (0xaecc_4991_4078_536d, -874),
    (0x823c_1279_5db6_ce57, -847),
    (0xc210_9436_4dfb_5637, -821),
    (0x9096_ea6f_3848_984f, -794),
    (0xd774_85cb_2582_3ac7, -768),
    (0xa086_cfcd_97bf_97f4, -741),
    (0xef34_0a98_172a_ace5, -715),
    (0xb238_67fb_2a35_b28e, -688),
    (0x84c8_d4df_d2c6_3f3b, -661),
    (0xc5dd_4427_1ad3_cdba, -635),
    (0x936b_9fce_bb25_c996, -608),
    (0xdbac_6c24_7d62_a584, -582),
    (0xa3ab_6658_0d5f_daf6, -555),
    (0xf3e2_f893_dec3_f126, -529),
    (0xb5b5_ada8_aaff_80b8, -502),
    (0x8762_5f05_6c7c_4a8b, -475),
    (0xc9bc_ff60_34c1_3053, -449),
    (0x964e_858c_91ba_2655, -422),
    (0xdff9_7724_7029_7ebd, -396),
    (0xa6df_bd9f_b8e5_b88f, -369),
    (0xf8a9_5fcf_8874_7d94, -343),
    (0xb944_7093_8fa8_9bcf, -316),
    (0x8a08_f0f8_bf0f_156b, -289),
    (0xcdb0_2555_6531_31b6, -263),
    (0x993f_e2c6_d07b_7fac, -236),
    (0xe45c_10c4_2a2b_3b06, -210),
    (0xaa24_2499_6973_92d3, -183),
    (0xfd87_b5f2_8300_ca0e, -157),
    (0xbce5_0864_9211_1aeb, -130),
    (0x8cbc_cc09_6f50_88cc, -103),
    (0xd1b7_1758_e219_652c, -77),
    (0x9c40_0000_0000_0000, -50),
    (0xe8d4_a510_0000_0000, -24),
    (0xad78_ebc5_ac62_0000, 3),
    (0x813f_3978_f894_0984, 30),
    (0xc097_ce7b_c907_15b3, 56),
    (0x8f7e_32ce_7bea_5c70, 83),
    (0xd5d2_38a4_abe9_8068, 109),
    (0x9f4f_2726_179a_2245, 136),
    (0xed63_a231_d4c4_fb27, 162),
    (0xb0de_6538_8cc8_ada8, 189),
    (0x83c7_088e_1aab_65db, 216),
    (0xc45d_1df9_4271_1d9a, 242),
    (0x924d_692c_a61b_e758, 269),
    (0xda01_ee64_1a70_8dea, 295),
    (0xa26d_a399_9aef_774a, 322),
    (0xf209_787b_b47d_6b85, 348),
    (0xb454_e4a1_79dd_1877, 375),
    (0x865b_8692_5b9b_c5c2, 402),
    (0xc835_53c5_c896_5d3d, 428),
    (0x952a_b45c_fa97_a0b3, 455),
    (0xde46_9fbd_99a0_5fe3, 481),
    (0xa59b_c234_db39_8c25, 508),
    (0xf6c6_9a72_a398_9f5c, 534),
    (0xb7dc_bf53_54e9_bece, 561),
    (0x88fc_f317_f222_41e2, 588),
    (0xcc20_ce9b_d35c_78a5, 614),
    (0x9816_5af3_7b21_53df, 641),
    (0xe2a0_b5dc_971f_303a, 667),
    (0xa8d9_d153_5ce3_b396, 694),
    (0xfb9b_7cd9_a4a7_443c, 720),
    (0xbb76_4c4c_a7a4_4410, 747),
    (0x8bab_8eef_b640_9c1a, 774),
    (0xd01f_ef10_a657_842c, 800),
    (0x9b10_a4e5_e991_3129, 827),
    (0xe710_9bfb_a19c_0c9d, 853),
    (0xac28_20d9_623b_f429, 880),
    (0x8044_4b5e_7aa7_cf85, 907),
    (0xbf21_e440_03ac_dd2d, 933),
    (0x8e67_9c2f_5e44_ff8f, 960),
    (0xd433_179d_9c8c_b841, 986),
    (0x9e19_db92_b4e3_1ba9, 1013),
];

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn floats_are_laid_out_as_nix_does() {
        for (float, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-1.5, "-1.5"),
            (1e5, "100000.0"),
            (123_456_789_012_345.0, "123456789012345.0"),
            (1e15, "1e+15"),
            (1.5e16, "1.5e+16"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (-1.25e-7, "-1.25e-07"),
            (1e100, "1e+100"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(print_float(float), expected);
        }
    }

    #[test]
    fn where_grisu2_misses_the_fewest_digits_so_do_we() {
        for (float, expected) in [
            (7.276e-10, "7.276000000000001e-10"),
            (-0.004_113_86, "-0.0041138600000000004"),
            (2.469_497_362_499_802_6e239, "2.4694973624998025e+239"),
            (-814_508.975_872_682, "-814508.9758726819"),
        ] {
            assert_eq!(print_float(float), expected);
        }
    }

    proptest! {
        #[test]
        fn every_float_is_read_back(bits in any::<u64>()) {
            let float = f64::from_bits(bits);
            prop_assume!(float.is_finite());
            let read: f64 = print_float(float).parse().unwrap();
            prop_assert_eq!(read.to_bits(), bits);
        }
    }
}
