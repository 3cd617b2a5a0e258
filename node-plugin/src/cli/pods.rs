//! Options about pods' own credentials.

use std::path::PathBuf;

use clap::Args;

/// How the tokens of pods are traded for keys, for volumes with `authenticationSource: pod`.
#[derive(Args, Debug, Clone, Default)]
pub struct PodIdentityArgs {
    /// Endpoint of the security token service [default: Amazon's].
    #[arg(long, value_name = "URL")]
    pub sts_endpoint_url: Option<String>,
    /// PEM file of certificate authorities that the security token service's may be of.
    #[arg(long, value_name = "FILE")]
    pub sts_ca_bundle: Option<PathBuf>,
    /// Audience of the tokens that it takes.
    #[arg(long, value_name = "AUDIENCE", default_value = "sts.amazonaws.com")]
    pub sts_audience: String,
    /// The agent of EKS Pod Identity on the node, for volumes that name no role:
    /// `http://169.254.170.23` there.
    #[arg(long, value_name = "URL")]
    pub pod_identity_agent_url: Option<String>,
}
