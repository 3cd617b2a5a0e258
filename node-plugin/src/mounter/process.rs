//! Whose request it is: what only a process of the host's pid namespace can see. Whoever asks is told
//! that a process is there, and what it has open of a session; of no other file.

use weir_fuse::adapter::mount::mount_table;
use weir_fuse::blocking::MayBlock;
use weir_fuse::engine::owner::{FileId, Proc, Processes};

use super::protocol::{Reply, Request};

/// Answers a question about processes; `None` when it is none.
pub(super) fn answer(may: &MayBlock, request: &Request) -> Option<Reply> {
    Some(match request {
        Request::ProcessOf { thread } => Reply::Process(Proc.process_of(may, *thread)),
        Request::IsAlive { process, and_stays } => {
            Reply::Is(Proc.is_alive(may, *process) && !(*and_stays && Proc.is_dying(may, *process)))
        }
        Request::Holds { process, device, ino, name } => {
            // Without CAP_SYS_PTRACE only some processes can be looked into; of the others
            // every close of the opener counts as its last, which costs a PUT more at most.
            let holds = Proc.holds(may, *process, &FileId { device, ino: *ino, name });
            Reply::Is(holds && is_of_a_session(device))
        }
        _ => return None,
    })
}

fn is_of_a_session(device: &str) -> bool {
    let table = mount_table().unwrap_or_default();
    table.iter().any(|entry| entry.is_ours() && entry.device == device)
}
