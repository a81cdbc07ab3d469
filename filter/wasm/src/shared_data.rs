//! The core's store on Envoy's shared data.

use super::host;
use nimgate_core::store::{Store, StoreError, Swap, Version};
use nimgate_core::units::Instant;

/// Shared data of this VM's `vm_id`.
#[derive(Debug, Default)]
pub struct SharedData;

impl Store for SharedData {
    fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        match host::shared_data(key) {
            Ok(present) => Ok(present.and_then(|(bytes, cas)| Some((bytes, Version::new(cas)?)))),
            Err(_) => Err(StoreError::Unavailable),
        }
    }

    fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        match host::swap_shared_data(key, value, version.map_or(CREATE, Version::get)) {
            Ok(true) => Ok(Swap::Replaced),
            Ok(false) => Ok(Swap::Lost),
            Err(_) => Err(StoreError::Unavailable),
        }
    }

    fn now(&mut self) -> Instant {
        host::now()
    }
}

/// The version to give for a key that has no value yet. The host ignores it if there is none, and since no value ever
/// has it, refuses if another worker was quicker. Zero would overwrite whatever is there.
const CREATE: u32 = u32::MAX;

/// A number that no other caller in the process gets: a counter in shared data, raised by compare-and-swap.
pub fn next_number(key: &str) -> Result<u32, StoreError> {
    SharedData.measure_and_replace(key, |present, _| {
        let last = present.and_then(|bytes| Some(u32::from_le_bytes(*bytes.first_chunk()?)));
        let next = last.unwrap_or(0).saturating_add(1);
        (Some(next.to_le_bytes().to_vec()), next)
    })
}
