//! Starts a ZooKeeper server from the Debian package `zookeeper` with `java`.

use std::path::Path;
use std::process::Command;

/// Adds the arguments of a server to `command`, which ends in `java`: its heap in MiB and its configuration file.
pub fn serve(command: &mut Command, heap_mib: u32, configuration: &Path) {
    // Little compilation and garbage collection, as servers run briefly on a shared machine.
    command.args([format!("-Xmx{heap_mib}m").as_str(), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.args(["-Dzookeeper.preAllocSize=1024", "-Dzookeeper.jmx.log4j.disable=true"]);
    command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]);
    command.args(["-cp", &class_path(), "org.apache.zookeeper.server.quorum.QuorumPeerMain"]).arg(configuration);
}

/// Returns the class path: the jars of a server first, then the folder of all jars, which is rarely searched then. The
/// first of several logging back ends is used.
fn class_path() -> String {
    let first =
        ["slf4j-simple", "slf4j-api", "zookeeper", "zookeeper-jute", "netty-all", "metrics-core", "snappy-java"];
    first.map(|name| format!("/usr/share/java/{name}.jar:")).concat() + "/usr/share/java/*"
}
