// Package powercut proves that a host survives a power cut at any instant. Hosts
// change their roots with kedge on disks with a write cache, of which QEMU's block
// layer logs every write and flush; the disks that a power cut may have left are
// made from the log and checked: the boot entry, kernel and initramfs as a boot
// loader reads them, which replays no journal, and behind them the root, after the
// replay. The same hosts with kedge's syncs taken out are the negative control:
// they have to be lost.
//
// The hosts are booted in mount namespaces, of this machine or of an emulated one.
//
// docs/reliability.md has the results.
package powercut
