// Package powercut proves that a host survives a power cut at any instant. A
// machine with a write cache changes its root with kedge while QEMU logs every
// write and flush; the disks that a power cut may have left are made from the log
// and checked: the boot entry, kernel and initramfs as a boot loader reads them,
// which replays no journal, and behind them the root, after the replay. The same
// host with kedge's syncs taken out is the negative control: it has to be lost.
//
// docs/reliability.md has the results.
package powercut
