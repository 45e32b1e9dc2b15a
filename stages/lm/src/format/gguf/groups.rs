//! Whether the Q2_0 tensors of a file have groups of 64 weights, as llama.cpp writes them, or of 128, as a fork of it does
//! under the same id: only the room that a tensor has up to the next one tells.

use super::info::TensorInfo;
use super::types::TensorType::{self, Q2_0, Q2_0G128};

const BOTH: [TensorType; 2] = [Q2_0, Q2_0G128];

/// The type of all Q2_0 tensors of a file whose tensor data has `end` bytes; groups of 64 where it could be either.
pub(super) fn of_q2_0(tensors: &[TensorInfo], alignment: u64, end: usize) -> Result<TensorType, String> {
    let mut offsets: Vec<usize> = tensors.iter().map(|t| t.offset).collect();
    offsets.sort_unstable();
    let next = |t: &TensorInfo| offsets.get(offsets.partition_point(|o| *o <= t.offset)).copied();
    let room = |t: &TensorInfo| next(t).unwrap_or(end).saturating_sub(t.offset) as u64;
    let fits = |ty: TensorType, t: &TensorInfo| {
        let size = ty.bytes(t.values());
        let filled = [Some(size), size.checked_next_multiple_of(alignment)].contains(&Some(room(t)));
        filled && t.cols().is_multiple_of(ty.block())
    };
    let known = |t: &TensorInfo| BOTH.into_iter().any(|ty| fits(ty, t));
    // Rows that no group divides are refused where the tensor is asked for.
    let all: Vec<&TensorInfo> = tensors.iter().filter(|t| t.ty == Q2_0.id() && t.cols().is_multiple_of(Q2_0.block())).collect();
    // What comes last may be cut, or have something else after it: it tells nothing then, unless nothing else does.
    let mut telling: Vec<&TensorInfo> = all.iter().copied().filter(|t| next(t).is_some() || known(t)).collect();
    if telling.is_empty() {
        telling = all;
    }
    let all_fit = |ty: TensorType| telling.iter().all(|t| fits(ty, t));
    if !all_fit(Q2_0) && all_fit(Q2_0G128) {
        return Ok(Q2_0G128);
    }
    match telling.iter().find(|t| !known(t)).or_else(|| telling.iter().find(|t| !fits(Q2_0, t))) {
        None => Ok(Q2_0),
        Some(odd) => Err(refusal(odd, room(odd))),
    }
}

fn refusal(t: &TensorInfo, room: u64) -> String {
    let [small, large] = BOTH.map(|ty| ty.bytes(t.values()));
    format!(
        "tensor `{}` of type Q2_0 has room for {room} bytes, where groups of 64 weights take {small} and groups of 128 {large}, and all \
         Q2_0 tensors of a file have the same groups",
        t.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Q2_0 tensors of two rows from (columns, bytes up to the next).
    fn infos(of: &[(usize, usize)]) -> (Vec<TensorInfo>, usize) {
        let mut end = 0;
        let one = |(i, (cols, bytes)): (usize, &(usize, usize))| {
            let offset = end;
            end += bytes;
            TensorInfo { name: format!("t{i}"), shape: vec![2, *cols], ty: 42, offset }
        };
        let all = of.iter().enumerate().map(one).collect();
        (all, end)
    }

    fn of(of: &[(usize, usize)]) -> Result<TensorType, String> {
        let (tensors, end) = infos(of);
        of_q2_0(&tensors, 32, end)
    }

    // Two rows of 256 columns take 144 bytes in groups of 64 and 136 in groups of 128, both 160 with padding; two of 512
    // take 288 and 272 (288 with padding); two of 1,024 take 576 and 544.
    #[test]
    fn the_room_of_tensors_tells_their_groups() {
        assert_eq!(of(&[]), Ok(Q2_0));
        assert_eq!(of(&[(1024, 576), (1024, 576)]), Ok(Q2_0));
        assert_eq!(of(&[(1024, 544), (256, 160)]), Ok(Q2_0G128));
        // Whichever it is where both fit; what comes last counts, padded or not.
        assert_eq!(of(&[(256, 160), (256, 160)]), Ok(Q2_0));
        assert_eq!(of(&[(256, 160), (1024, 544)]), Ok(Q2_0G128));
        assert_eq!(of(&[(256, 136)]), Ok(Q2_0G128));
        // Cut, or with bytes after it.
        assert_eq!(of(&[(1024, 544), (1024, 90)]), Ok(Q2_0G128));
        assert_eq!(of(&[(1024, 576), (1024, 999)]), Ok(Q2_0));
        // Three groups of 64 a row.
        assert_eq!(of(&[(192, 128), (1024, 576)]), Ok(Q2_0));
    }

    #[test]
    fn the_order_of_tensors_is_that_of_their_offsets() {
        let (mut tensors, end) = infos(&[(1024, 544), (256, 160), (1024, 544)]);
        tensors.reverse();
        assert_eq!(of_q2_0(&tensors, 32, end), Ok(Q2_0G128));
    }

    #[test]
    fn what_fits_neither_is_named_with_both_sizes() {
        let error = of(&[(1024, 576), (1024, 608), (1024, 576)]).expect_err("fits neither");
        assert!(error.contains("`t1`") && ["608", "576", "544"].iter().all(|n| error.contains(n)), "{error}");
        let error = of(&[(1024, 576), (1024, 544)]).expect_err("both");
        assert!(error.contains("`t1`") && error.contains("the same groups"), "{error}");
        let error = of(&[(1024, 100)]).expect_err("cut");
        assert!(error.contains("`t0`") && error.contains("100"), "{error}");
        // Only groups of 64 divide its rows.
        assert!(of(&[(192, 96)]).is_err());
        // A file that says the impossible.
        let wild = TensorInfo { name: "w".into(), shape: vec![usize::MAX, usize::MAX / 128 * 128], ty: 42, offset: usize::MAX };
        assert!(of_q2_0(&[wild], u64::from(u32::MAX), 0).is_err());
    }
}
