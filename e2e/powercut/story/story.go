// Package story is what the machine of the power-cut proof does, for the program
// that runs in it and for the test that reads its write log.
package story

// Step is one change of a booted host.
type Step struct {
	Name   string
	Counts []string // operations of the report that it belongs to
	Kedge  []string
	Images string // the directory of Layouts that Layout is from here on, in this boot
}

const (
	// Layout is where the guest's kedge finds the images.
	Layout = "/run/os"
	first  = "first"
	later  = "later" // has a newer image under the tag
	// Tag is what the host follows after its first switch.
	Tag = "2"
	// Karg is what the step kargs adds.
	Karg = "powercut=1"
)

// Boots are the host's boots: what is done in each before it goes down. Reboots
// in between are orderly. The host's image at the beginning is version 1.
var Boots = [][]Step{
	{
		{Name: "switch", Counts: []string{"switch"}, Kedge: []string{"switch", "oci:" + Layout + ":" + Tag}, Images: first},
		{Name: "finalize switch", Counts: []string{"switch", finalisation}, Kedge: finalize},
	},
	{
		{Name: "kargs", Counts: []string{"kargs"}, Kedge: []string{"kargs", "--append", Karg}, Images: first},
		{Name: "finalize kargs", Counts: []string{"kargs", finalisation}, Kedge: finalize},
	},
	{
		{Name: "upgrade", Counts: []string{"upgrade"}, Kedge: []string{"upgrade"}, Images: later},
		{Name: "finalize upgrade", Counts: []string{"upgrade", finalisation}, Kedge: finalize},
	},
	{{Name: "rollback", Counts: []string{"rollback"}, Kedge: []string{"rollback"}}},
	{{Name: "cleanup", Counts: []string{gc}, Kedge: []string{"cleanup", "--rollback"}}},
}

// Operations of the report, in its order. What stages a deployment has two
// steps, of which the second is finalisation.
var Operations = []string{"switch", "kargs", "upgrade", "rollback", finalisation, gc}

const (
	finalisation = "finalisation"
	gc           = "GC"
)

var finalize = []string{"internals", "finalize-staged"}

// Layouts are the versions of the image by directory and tag.
var Layouts = map[string]map[string]int{first: {Tag: 2}, later: {Tag: 3}}

// Marks are texts that the guest writes before and after each step to the last
// MarkSize bytes of the disk, which the file system does not have: Begin or End
// and the step's name, ended by a NUL.
const (
	MarkSize = 4096
	Begin    = "begin "
	End      = "end "
)
