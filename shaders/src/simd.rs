//! Runtime dispatch for the twins: the same Rust body compiled for wider instruction sets, with the same bits out.
//!
//! Bodies use `mul_add` for every multiply-add and accumulate in a fixed order, so that all versions agree exactly.
#![allow(unsafe_code)]

/// Which instruction sets the twins use here.
pub fn level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if avx512() {
            return "avx512";
        }
        if avx2() {
            return "avx2";
        }
    }
    if cfg!(target_arch = "aarch64") { "neon" } else { "portable" }
}

/// Whether AVX2 and FMA are there.
#[cfg(target_arch = "x86_64")]
pub fn avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Whether AVX-512 (F, BW, DQ, VL) is there.
#[cfg(target_arch = "x86_64")]
pub fn avx512() -> bool {
    avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Defines functions whose body is compiled for AVX-512, AVX2 and the baseline, and picked at run time.
#[macro_export]
macro_rules! simd {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn wide512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn wide256($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                if $crate::simd::avx512() {
                    // SAFETY: the features were detected on this CPU.
                    return unsafe { wide512($($arg),*) };
                }
                if $crate::simd::avx2() {
                    // SAFETY: the features were detected on this CPU.
                    return unsafe { wide256($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}
