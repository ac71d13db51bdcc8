//! Starts a server of ZooKeeper from Debian's package `zookeeper` with `java`.

use std::path::Path;
use std::process::Command;

/// Lets `command`, which ends in `java`, start a server that is set up by a file and has so much heap.
pub fn serve(command: &mut Command, heap_mib: u32, configuration: &Path) {
    // Short lives on a shared machine: little compiling and collecting besides the work.
    command.args([format!("-Xmx{heap_mib}m").as_str(), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.args(["-Dzookeeper.preAllocSize=1024", "-Dzookeeper.jmx.log4j.disable=true"]);
    command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]);
    command.args(["-cp", &class_path(), "org.apache.zookeeper.server.quorum.QuorumPeerMain"]).arg(configuration);
}

/// The folder of all jars, after those that a server takes its classes from: the others are hardly looked at then. Of the
/// many back ends of the logger there the first one wins.
fn class_path() -> String {
    let first =
        ["slf4j-simple", "slf4j-api", "zookeeper", "zookeeper-jute", "netty-all", "metrics-core", "snappy-java"];
    first.map(|name| format!("/usr/share/java/{name}.jar:")).concat() + "/usr/share/java/*"
}
