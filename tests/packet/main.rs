//! Packets and sockets through the pipeline, on the host and in the kernel with the shipping object, with equal results.

mod cases;
mod cluster;
mod differential;
mod direct;
mod entry;
mod errors;
mod external;
mod frame;
mod hostile;
mod kernel;
mod opening;
mod shares;
mod sockets;
mod tunnel;
mod ways_out;
