package main

import (
	"testing"

	v1 "github.com/kedge-os/kedge/api/v1"
)

// TestPackagesChangeText: what --dry-run and --download-only show.
func TestPackagesChangeText(t *testing.T) {
	htop := v1.Package{Name: "htop", Version: "3.4.1-5", Arch: "amd64", Repository: "Debian:13.2/stable", Size: 171436, Requested: true}
	libnl := v1.Package{Name: "libnl-3-200", Version: "3.7.0-2", Arch: "amd64", Repository: "Debian:13.2/stable", Size: 61500}
	bash := v1.Package{Name: "bash", Version: "5.2-2", Arch: "amd64", Size: 1500000, Requested: true, Replaces: "5.2-1"}
	for name, tc := range map[string]*v1.PackageChange{
		"nothing": nil,
		"first":   {Layered: []v1.Package{htop, libnl}, Added: []v1.Package{htop, libnl}},
		"more": {
			Layered: []v1.Package{bash, htop, libnl}, Added: []v1.Package{bash}, Changed: []v1.Package{libnl},
			Dropped: []v1.Package{{Name: "vim", Version: "2:9.1", Arch: "amd64"}}, Removed: []v1.Package{{Name: "nano", Version: "8.4-1", Arch: "amd64"}},
			Inactive: []string{"curl"},
		},
	} {
		golden(t, "packages/"+name+".txt", packagesChangeText(tc))
	}
}
