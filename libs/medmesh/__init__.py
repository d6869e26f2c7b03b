"""medmesh: hospitals keep their data and train, approve and use models together."""
