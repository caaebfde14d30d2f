//! Between a unix socket and tonic: whatever a client says its `:authority` is, tonic reads `localhost`.
//!
//! kubelet's plugin watcher dials the registration socket by its path, and grpc-go makes an authority of that:
//! `%2Fvar%2Flib%2Fkubelet%2F…`, before 1.57 the path itself. So do gRPC's C core (Python, C++) and grpc-java on any unix
//! socket. No such name is a host: the `h2` crate below tonic resets the stream with PROTOCOL_ERROR, and nobody is
//! ever registered (hyperium/h2 #345 and #487, grpc/grpc #38142; kubernetes #112597 made kubelet send `localhost` to CSI
//! sockets, not to the watched ones). On a unix socket the authority tells nothing: who listens is who was dialed.
//!
//! So the HTTP/2 frames that the client sends (RFC 9113) are looked at. All pass as they are and as they come, apart
//! from the field blocks of HEADERS and CONTINUATION, which [`field_block`] writes again. What the server sends
//! is not touched. A client that breaks the rules, or a bound, is disconnected.

pub mod field_block;
pub mod rewriter;
pub mod stream;
