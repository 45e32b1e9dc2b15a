//! Columns of numbers in the width that is asked for. `arrow-cast` would do it too, and everything else: it and the crates
//! that it brings took a tenth of a cold build.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, ListArray, PrimitiveArray};
use arrow_schema::DataType;

/// `array` as `ty`: whole numbers as whole ones of another width, null where they do not fit, floats as float32, lists of
/// either. None where `ty` is nothing of these.
pub fn to(array: &ArrayRef, ty: &DataType) -> Option<ArrayRef> {
    if array.data_type() == ty {
        return Some(array.clone());
    }
    match ty {
        DataType::Int32 => whole::<Int32Type>(array),
        DataType::Int64 => whole::<Int64Type>(array),
        DataType::Float32 => float(array),
        DataType::List(item) => {
            let list = array.as_list_opt::<i32>()?;
            let values = to(list.values(), item.data_type())?;
            let list = ListArray::try_new(item.clone(), list.offsets().clone(), values, list.nulls().cloned());
            Some(Arc::new(list.ok()?))
        }
        _ => None,
    }
}

/// Whole numbers as those of `To`.
fn whole<To: ArrowPrimitiveType>(array: &ArrayRef) -> Option<ArrayRef>
where
    To::Native: TryFrom<i64> + TryFrom<u64>,
{
    fn signed<From: ArrowPrimitiveType<Native: Into<i64>>, To: ArrowPrimitiveType<Native: TryFrom<i64>>>(array: &ArrayRef) -> ArrayRef {
        let of: &PrimitiveArray<From> = array.as_primitive();
        Arc::new(of.unary_opt::<_, To>(|v| v.into().try_into().ok()))
    }
    fn unsigned<From: ArrowPrimitiveType<Native: Into<u64>>, To: ArrowPrimitiveType<Native: TryFrom<u64>>>(array: &ArrayRef) -> ArrayRef {
        let of: &PrimitiveArray<From> = array.as_primitive();
        Arc::new(of.unary_opt::<_, To>(|v| v.into().try_into().ok()))
    }
    Some(match array.data_type() {
        DataType::Int8 => signed::<Int8Type, To>(array),
        DataType::Int16 => signed::<Int16Type, To>(array),
        DataType::Int32 => signed::<Int32Type, To>(array),
        DataType::Int64 => signed::<Int64Type, To>(array),
        DataType::UInt8 => unsigned::<UInt8Type, To>(array),
        DataType::UInt16 => unsigned::<UInt16Type, To>(array),
        DataType::UInt32 => unsigned::<UInt32Type, To>(array),
        DataType::UInt64 => unsigned::<UInt64Type, To>(array),
        _ => return None,
    })
}

/// Floats as float32, which rounds and, beyond its range, is infinite.
fn float(array: &ArrayRef) -> Option<ArrayRef> {
    Some(match array.data_type() {
        DataType::Float16 => Arc::new(array.as_primitive::<Float16Type>().unary::<_, Float32Type>(f32::from)),
        DataType::Float64 => Arc::new(array.as_primitive::<Float64Type>().unary::<_, Float32Type>(|v| v as f32)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::types::UInt64Type;
    use arrow_array::{Float64Array, Int64Array, UInt64Array};
    use arrow_schema::Field;

    #[test]
    fn what_does_not_fit_is_null() {
        let wide: ArrayRef = Arc::new(UInt64Array::from(vec![Some(7), None, Some(u64::MAX), Some(1 << 31)]));
        let narrow = to(&wide, &DataType::Int32).expect("whole numbers");
        assert_eq!(narrow.as_primitive::<Int32Type>(), &PrimitiveArray::<Int32Type>::from(vec![Some(7), None, None, None]));
        let negative: ArrayRef = Arc::new(Int64Array::from(vec![-1, i64::MAX]));
        assert_eq!(
            to(&negative, &DataType::Int32).expect("whole").as_primitive::<Int32Type>().iter().collect::<Vec<_>>(),
            [Some(-1), None]
        );
        assert!(to(&negative, &DataType::Float32).is_none() && to(&negative, &DataType::Utf8).is_none());
    }

    #[test]
    fn lists_keep_their_places_and_nulls() {
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<UInt64Type, _, _>([
            Some(vec![Some(1), Some(u64::MAX)]),
            None,
            Some(vec![]),
            Some(vec![None, Some(2)]),
        ]));
        let ty = DataType::List(Arc::new(Field::new("element", DataType::Int64, true)));
        let got = to(&lists.slice(1, 3), &ty).expect("lists");
        let rows: Vec<Option<Vec<Option<i64>>>> =
            got.as_list::<i32>().iter().map(|l| l.map(|l| l.as_primitive::<Int64Type>().iter().collect())).collect();
        assert_eq!(rows, [None, Some(vec![]), Some(vec![None, Some(2)])]);
    }

    #[test]
    fn floats_round_and_overflow_to_infinity() {
        let wide: ArrayRef = Arc::new(Float64Array::from(vec![0.1, 1e300, f64::NEG_INFINITY]));
        let got = to(&wide, &DataType::Float32).expect("floats");
        assert_eq!(got.as_primitive::<Float32Type>().values().as_ref(), [0.1f32, f32::INFINITY, f32::NEG_INFINITY]);
    }
}
