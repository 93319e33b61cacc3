//! Packets and sockets through the pipeline, on the host and in the kernel with the shipping object, with equal
//! results.

mod admission;
mod cases;
mod cluster;
mod cluster_policy;
mod differential;
mod direct;
mod errors;
mod expect;
mod external;
mod frame;
mod generations;
mod hostile;
mod kernel;
mod multiple_uplinks;
mod new_subjects;
mod opening;
mod policy;
mod policy_errors;
mod policy_from_stack;
mod policy_paths;
mod policy_pods;
mod removal;
mod shares;
mod sockets;
mod tunnel;
