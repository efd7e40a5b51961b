package api

import (
	"math/rand/v2"
	"strconv"
	"strings"
)

// randomName names a service that its user gave no name, as Docker does: two
// words, and a number because others may have drawn the same words.
func randomName() string {
	const (
		manners = "brave calm clever eager fair fast gentle happy keen kind lively lucky nimble patient proud quick quiet sharp steady swift tidy warm wise witty"
		people  = "baran cerf clark cohen crocker davies dijkstra engelbart feinler floyd hopper jacobson kahn kleinrock licklider lynch mockapetris nagle perlman pouzin postel roberts shannon spafford"
	)
	pick := func(words string) string {
		list := strings.Fields(words)
		return list[rand.IntN(len(list))]
	}
	return pick(manners) + "_" + pick(people) + strconv.Itoa(rand.IntN(10000))
}
