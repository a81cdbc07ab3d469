//! The ABI's form of a header map: a count, the sizes of all names and values, then names and values, each ended by
//! NUL. Read in place, so that looking at a request's headers costs one host call and one allocation.

/// The headers of a serialised map. Ends early, and quietly, where the bytes are not what the ABI promises.
pub fn pairs(map: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let count = map.first_chunk().map_or(0, |count| u32::from_le_bytes(*count) as usize);
    let sizes_end = count.saturating_mul(8).saturating_add(4);
    let (sizes, data) = map.split_at_checked(sizes_end).unwrap_or_default();
    let mut rest = data;
    let mut take = move |size: usize| {
        let (value, tail) = rest.split_at_checked(size)?;
        rest = tail.get(1..).unwrap_or_default();
        Some(value)
    };
    sizes.get(4..).unwrap_or_default().chunks_exact(8).map_while(move |sizes| {
        let (name, value) = sizes.split_first_chunk::<4>()?;
        let name = take(u32::from_le_bytes(*name) as usize)?;
        let value = take(u32::from_le_bytes(*value.first_chunk()?) as usize)?;
        Some((name, value))
    })
}

/// A serialised map of these headers.
pub fn serialise(headers: &[(&[u8], &[u8])]) -> Vec<u8> {
    let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes();
    let mut map = Vec::new();
    map.extend_from_slice(&size(headers.len()));
    for (name, value) in headers {
        map.extend_from_slice(&size(name.len()));
        map.extend_from_slice(&size(value.len()));
    }
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        map.extend_from_slice(text);
        map.push(0);
    }
    map
}
