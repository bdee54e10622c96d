package main

import (
	"strings"
	"testing"
	"time"

	v1 "github.com/kedge-os/kedge/api/v1"
)

func entry(version, digit string, index int, next bool) *v1.BootEntry {
	built := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	digest := "sha256:" + strings.Repeat(digit, 64)
	return &v1.BootEntry{
		Image: &v1.ImageStatus{
			Image:   v1.ImageReference{Image: "registry.example/os:stable", Transport: "registry"},
			Version: &version, Timestamp: &built, ImageDigest: digest, Architecture: "amd64",
		},
		Kedge: &v1.KedgeEntry{
			ID: "default/" + strings.Repeat(digit, 64) + ".0", Index: index, Next: next, Backend: "ostree",
			Version: version, Digest: digest, Kargs: []string{"root=LABEL=root", "rw"},
			Origin: "ostree-unverified-registry:registry.example/os:stable",
		},
	}
}

func TestStatusText(t *testing.T) {
	for name, change := range map[string]func(*v1.Host){
		"booted": func(h *v1.Host) { h.Status.Booted = entry("41.1", "1", 0, true) },
		"staged": func(h *v1.Host) {
			h.Status.Staged = entry("41.2", "2", 0, true)
			h.Status.Booted = entry("41.1", "1", 1, false)
			h.Status.Rollback = entry("41.0", "0", 2, false)
		},
		"downloaded": func(h *v1.Host) {
			h.Status.Staged = entry("41.2", "2", 0, false)
			h.Status.Staged.DownloadOnly = true
			h.Status.Booted = entry("41.1", "1", 1, true)
		},
		"rollback-queued": func(h *v1.Host) {
			h.Status.Rollback = entry("41.0", "0", 0, true)
			h.Status.Booted = entry("41.1", "1", 1, false)
			h.Status.RollbackQueued = true
		},
		"failed": func(h *v1.Host) {
			h.Status.Booted = entry("41.1", "1", 0, true)
			h.Status.Kedge = &v1.KedgeStatus{
				Backend: "ostree", FinalizeFailure: "2026-01-03 03:00:00: merge /etc: no space left on device",
				Warnings: []string{"boot entry ostree-3.conf: it has no ostree= argument"},
			}
		},
		"rolled-back": func(h *v1.Host) {
			h.Status.Booted = entry("41.0", "0", 0, true)
			h.Status.Booted.Kedge.Health = &v1.Health{State: v1.HealthGood, Time: judged, Passed: 4}
			h.Status.Rollback = entry("41.1", "1", 1, false)
			h.Status.Rollback.Kedge.Health, h.Status.Rollback.Kedge.Held = failedBoot(), v1.HeldCheck
			h.Status.Rollback.Kedge.Tries = &v1.Tries{Done: 3}
			h.Status.Kedge = &v1.KedgeStatus{
				Backend: "ostree", LastRollback: rolledBack(),
				AutoRollback: &v1.AutoRollback{State: v1.RollbackUnsupported, Reason: "GRUB 2.12 does not count boots"},
			}
		},
		"offline": func(h *v1.Host) {
			h.Status.OtherDeployments = []v1.BootEntry{*entry("41.2", "2", 0, true), *entry("40.0", "3", 2, false)}
			h.Status.OtherDeployments[1].Pinned = true
			h.Status.Rollback = entry("41.0", "0", 1, false)
		},
		"packages": func(h *v1.Host) {
			e := entry("41.1", "1", 0, true)
			e.Image, e.Incompatible = nil, true
			e.Kedge.Packages = &v1.Packages{Requested: []string{"htop", "vim"}, Layered: []string{"htop 3.4.1-5", "libnl-3-200 3.7.0-2", "vim 2:9.1"}, Removed: []string{"nano"}}
			e.Kedge.Initramfs = &v1.Initramfs{Args: []string{"--add-drivers", "nvme vfio-pci"}}
			e.Kedge.PackageChanges = []v1.PackageDiff{
				{Name: "bash", Arch: "amd64", Change: "upgraded", From: "5.2-1", To: "5.2-2"}, {Name: "nano", Arch: "amd64", Change: "removed", From: "8.0"},
			}
			h.Status.Booted = e
		},
		"empty": func(*v1.Host) {},
	} {
		t.Run(name, func(t *testing.T) {
			h := v1.NewHost()
			change(h)
			golden(t, "status/"+name+".txt", statusText(&env{sysroot: "/mnt", color: "never"}, h))
		})
	}
}
