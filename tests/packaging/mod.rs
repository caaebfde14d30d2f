//! What the chart makes of the plugin.

mod daemonset;
mod monitoring;
