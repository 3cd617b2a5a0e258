//! The C functions of NVML that Weir calls, answered from a file. Weir's own code loads this
//! library by its path and knows no difference.
#![allow(unsafe_code, reason = "the C interface of NVML")]
#![allow(non_snake_case, reason = "names of NVML")]
#![allow(clippy::missing_safety_doc, missing_docs, reason = "as nvml.h documents them")]

mod machine;

use std::ffi::{c_char, c_int, c_uint, c_ulong};
use std::sync::{Mutex, PoisonError};

use machine::{Gpu, Instance, Machine};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlGpuFabricInfoV_t, nvmlMemory_v2_t, nvmlPciInfo_t, nvmlReturn_t,
};

const SUCCESS: nvmlReturn_t = 0;
const UNINITIALIZED: nvmlReturn_t = 1;
const INVALID_ARGUMENT: nvmlReturn_t = 2;
const NOT_SUPPORTED: nvmlReturn_t = 3;
const NOT_FOUND: nvmlReturn_t = 6;
const INSUFFICIENT_SIZE: nvmlReturn_t = 7;
const DRIVER_NOT_LOADED: nvmlReturn_t = 9;

static MACHINE: Mutex<Option<Machine>> = Mutex::new(None);

/// What a handle stands for.
enum Part<'a> {
    Gpu(&'a Gpu),
    Instance(&'a Gpu, &'a Instance),
}

/// Handles are small numbers: a GPU's index and one, an instance's in the upper half.
fn handle(gpu: usize, instance: Option<usize>) -> nvmlDevice_t {
    let number = (gpu + 1) | (instance.map_or(0, |at| at + 1) << 16);
    number as nvmlDevice_t
}

impl Machine {
    fn part(&self, device: nvmlDevice_t) -> Option<Part<'_>> {
        let number = device as usize;
        let gpu = self.gpus.get((number & 0xffff).checked_sub(1)?)?;
        match (number >> 16).checked_sub(1) {
            None => Some(Part::Gpu(gpu)),
            Some(at) => Some(Part::Instance(gpu, gpu.mig.as_ref()?.get(at)?)),
        }
    }
}

/// Answers a call as the machine says.
fn answer(function: &str, answer: impl FnOnce(&Machine) -> nvmlReturn_t) -> nvmlReturn_t {
    let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(machine) = machine.as_ref() else { return UNINITIALIZED };
    hang(machine, function);
    match machine.fail.get(function).or_else(|| machine.fail.get("*")) {
        Some(code) => *code,
        None => answer(machine),
    }
}

fn hang(machine: &Machine, function: &str) {
    while machine.hang.iter().any(|name| name == function) {
        std::thread::sleep(std::time::Duration::from_secs(3600));
    }
}

fn gpu(
    machine: &Machine,
    device: nvmlDevice_t,
    f: impl FnOnce(&Gpu) -> nvmlReturn_t,
) -> nvmlReturn_t {
    match machine.part(device) {
        Some(Part::Gpu(gpu)) => f(gpu),
        Some(Part::Instance(..)) => NOT_SUPPORTED,
        None => INVALID_ARGUMENT,
    }
}

/// Writes a C string where there is room.
unsafe fn put(text: &str, to: *mut c_char, room: c_uint) -> nvmlReturn_t {
    if text.len() + 1 > room as usize {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: the caller has room for the text and its end.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        *to.add(text.len()) = 0;
    }
    SUCCESS
}

unsafe fn put_pci(address: &str, to: *mut nvmlPciInfo_t) -> nvmlReturn_t {
    // SAFETY: the caller's structure; all of its fields are plain numbers.
    let info = unsafe {
        to.write(std::mem::zeroed());
        &mut *to
    };
    // SAFETY: both have the room that they say.
    unsafe {
        put(address, info.busId.as_mut_ptr(), info.busId.len() as c_uint);
        put(
            address.get(4..).unwrap_or(address),
            info.busIdLegacy.as_mut_ptr(),
            info.busIdLegacy.len() as c_uint,
        )
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    let read = || {
        let text = std::fs::read_to_string(std::env::var_os("WEIR_FAKE_NVML")?).ok()?;
        serde_json::from_str(&text).inspect_err(|e| eprintln!("WEIR_FAKE_NVML: {e}")).ok()
    };
    let Some(machine): Option<Machine> = read() else { return DRIVER_NOT_LOADED };
    hang(&machine, "nvmlInit_v2");
    if let Some(code) = machine.fail.get("nvmlInit_v2") {
        return *code;
    }
    *MACHINE.lock().unwrap_or_else(PoisonError::into_inner) = Some(machine);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    *MACHINE.lock().unwrap_or_else(PoisonError::into_inner) = None;
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, room: c_uint) -> nvmlReturn_t {
    // SAFETY: as the caller promises.
    answer("nvmlSystemGetDriverVersion", |machine| unsafe { put(&machine.driver, to, room) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(to: *mut c_int) -> nvmlReturn_t {
    answer("nvmlSystemGetCudaDriverVersion_v2", |machine| {
        // SAFETY: as the caller promises.
        unsafe { *to = machine.cuda };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(to: *mut c_uint) -> nvmlReturn_t {
    answer("nvmlDeviceGetCount_v2", |machine| {
        // SAFETY: as the caller promises.
        unsafe { *to = machine.gpus.len() as c_uint };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    to: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetHandleByIndex_v2", |machine| {
        if index as usize >= machine.gpus.len() {
            return INVALID_ARGUMENT;
        }
        // SAFETY: as the caller promises.
        unsafe { *to = handle(index as usize, None) };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: nvmlDevice_t,
    to: *mut c_char,
    room: c_uint,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetName", |machine| {
        let name = match machine.part(device) {
            Some(Part::Gpu(gpu)) => gpu.product.clone(),
            Some(Part::Instance(gpu, part)) => format!("{} MIG {}", gpu.product, part.profile),
            None => return INVALID_ARGUMENT,
        };
        // SAFETY: as the caller promises.
        unsafe { put(&name, to, room) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: nvmlDevice_t,
    to: *mut c_char,
    room: c_uint,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetUUID", |machine| {
        let uuid = match machine.part(device) {
            Some(Part::Gpu(gpu)) => &gpu.uuid,
            Some(Part::Instance(_, part)) => &part.uuid,
            None => return INVALID_ARGUMENT,
        };
        // SAFETY: as the caller promises.
        unsafe { put(uuid, to, room) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    to: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetMemoryInfo_v2", |machine| {
        let mib = match machine.part(device) {
            Some(Part::Gpu(gpu)) => gpu.memory_mib,
            Some(Part::Instance(_, part)) => part.memory_mib,
            None => return INVALID_ARGUMENT,
        };
        // SAFETY: as the caller promises.
        unsafe { (*to).total = mib << 20 };
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: nvmlDevice_t,
    to: *mut nvmlPciInfo_t,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetPciInfo_v3", |machine| {
        // SAFETY: as the caller promises.
        gpu(machine, device, |gpu| unsafe { put_pci(&gpu.pci, to) })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryAffinity(
    device: nvmlDevice_t,
    words: c_uint,
    to: *mut c_ulong,
    _scope: c_uint,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetMemoryAffinity", |machine| {
        gpu(machine, device, |gpu| {
            let Some(node) = gpu.numa else { return NOT_SUPPORTED };
            // SAFETY: the caller has so many words.
            let mask = unsafe { std::slice::from_raw_parts_mut(to, words as usize) };
            mask.fill(0);
            match mask.get_mut((node / c_ulong::BITS) as usize) {
                Some(word) => *word = 1 << (node % c_ulong::BITS),
                None => return INSUFFICIENT_SIZE,
            }
            SUCCESS
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetMigMode", |machine| {
        gpu(machine, device, |gpu| {
            if gpu.no_mig {
                return NOT_SUPPORTED;
            }
            let on = c_uint::from(gpu.mig.is_some());
            // SAFETY: as the caller promises.
            unsafe { (*current, *pending) = (on, on) };
            SUCCESS
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(
    device: nvmlDevice_t,
    to: *mut c_uint,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetMaxMigDeviceCount", |machine| {
        gpu(machine, device, |gpu| {
            // SAFETY: as the caller promises.
            unsafe { *to = if gpu.no_mig { 0 } else { 7 } };
            SUCCESS
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    to: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetMigDeviceHandleByIndex", |machine| {
        gpu(machine, device, |gpu| {
            if gpu.mig.as_ref().is_none_or(|parts| index as usize >= parts.len()) {
                return NOT_FOUND;
            }
            // SAFETY: as the caller promises.
            unsafe { *to = handle(device as usize - 1, Some(index as usize)) };
            SUCCESS
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkState(
    device: nvmlDevice_t,
    link: c_uint,
    to: *mut c_uint,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetNvLinkState", |machine| {
        gpu(machine, device, |gpu| {
            if gpu.links.is_empty() {
                return NOT_SUPPORTED;
            }
            // SAFETY: as the caller promises.
            unsafe { *to = c_uint::from(gpu.link(link).is_some()) };
            SUCCESS
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
    device: nvmlDevice_t,
    link: c_uint,
    to: *mut nvmlPciInfo_t,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetNvLinkRemotePciInfo_v2", |machine| {
        gpu(machine, device, |gpu| match gpu.link(link) {
            // SAFETY: as the caller promises.
            Some(link) => unsafe { put_pci(&link.pci, to) },
            None => INVALID_ARGUMENT,
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkRemoteDeviceType(
    device: nvmlDevice_t,
    link: c_uint,
    to: *mut c_uint,
) -> nvmlReturn_t {
    answer("nvmlDeviceGetNvLinkRemoteDeviceType", |machine| {
        gpu(machine, device, |gpu| match gpu.link(link) {
            Some(link) => {
                // SAFETY: as the caller promises.
                unsafe { *to = link.kind };
                SUCCESS
            }
            None => INVALID_ARGUMENT,
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuFabricInfoV(
    device: nvmlDevice_t,
    to: *mut nvmlGpuFabricInfoV_t,
) -> nvmlReturn_t {
    /// `NVML_GPU_FABRIC_STATE_COMPLETED`.
    const COMPLETED: u8 = 3;
    answer("nvmlDeviceGetGpuFabricInfoV", |machine| {
        gpu(machine, device, |gpu| {
            let Some(clique) = &gpu.clique else { return NOT_SUPPORTED };
            // SAFETY: the caller's structure.
            let info = unsafe { &mut *to };
            info.clusterUuid = clique.cluster_uuid;
            (info.cliqueId, info.state, info.status) = (clique.id, COMPLETED, SUCCESS);
            SUCCESS
        })
    })
}
