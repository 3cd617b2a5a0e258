//! Who may ask for what. The plugin's socket is for a group, too, which answers in its place while it is
//! away: that makes nobody of it kubelet.
//!
//! Fact: unix(7), SO_PEERCRED. The kernel says who has called connect(2).

use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

/// Checks that a call comes from root, as kubelet's do, or from the user of this process, as those of a
/// sidecar in its pod.
///
/// # Errors
/// `PermissionDenied` that says who it is, and who may.
pub(crate) fn check(request: Request<()>) -> Result<Request<()>, Status> {
    let connection = request.extensions().get::<UdsConnectInfo>();
    let user = connection.and_then(|info| info.peer_cred).map(|cred| cred.uid());
    let own = rustix::process::geteuid().as_raw();
    if user.is_some_and(|user| may_call(user, own)) {
        return Ok(request);
    }
    let who = user.map_or_else(|| "somebody unknown".to_owned(), |user| format!("user {user}"));
    tracing::warn!(who, "a call is refused");
    Err(Status::permission_denied(format!(
        "{who} may ask this plugin what it is, and nothing of volumes or the node: that is for kubelet, \
         which is root, and for user {own}, as whom the plugin runs"
    )))
}

fn may_call(user: u32, own: u32) -> bool {
    user == 0 || user == own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_plugins_own_user_may_call_and_nobody_else() {
        for own in [0, 65532] {
            assert!(may_call(0, own) && may_call(own, own) && !may_call(65531, own));
        }
        assert!(!may_call(65532, 0));
        // What came over nothing that the kernel knows.
        let refused = check(Request::new(())).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }
}
