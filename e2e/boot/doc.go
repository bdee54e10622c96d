// Package boot holds the tests that install real images on disks, boot them in
// QEMU without KVM, and drive kedge in the guest as an admin would.
//
// One boot takes the better part of a minute, so a test is a story of several
// steps per boot. Stories run side by side, each machine on one core; their
// images in the world that they share have names of their own. Everything is
// real: Debian packages, podman build, a registry on this machine's loopback,
// systemd, ostree's own prepare-root.
//
// Stories start in the order of the files' names: the longest come first, so that
// none of them is alone at the end.
package boot
